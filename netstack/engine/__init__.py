"""The machine: frames and time in, frames, effects and the next deadline out.

Opens no socket, reads no clock, throws no dice.
"""
