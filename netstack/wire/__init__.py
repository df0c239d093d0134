"""Floor 0, the wire: bytes to values and values to bytes, one file per protocol. No state, no decision, no I/O."""
