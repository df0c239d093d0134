"""Transcripts of how a connection ends: in order from either side or both, by reset, and what is said afterwards."""

from __future__ import annotations

import pytest

from netstack.engine import tcp_states as st

from .transcript import OPEN, OPEN_SACK, OPEN_TS, Player, transcript

# Dialogues that lead from ESTABLISHED to each later state, with the number that the guest sends next, and ours.
FIN_WAIT_1 = """
+0      finish
+0      engine  F. 1:1(0) ack 1001
+0      expect  state FIN-WAIT-1
"""
FIN_WAIT_2 = (
    FIN_WAIT_1
    + """
+0.001  guest   . 1001 ack 2
+0      expect  state FIN-WAIT-2
"""
)
CLOSE_WAIT = """
+0      guest   F. 1001 ack 1
+0      engine  . 1:1(0) ack 1002
+0      expect  state CLOSE-WAIT
"""
CLOSING = (
    FIN_WAIT_1
    + """
+0.001  guest   F. 1001 ack 1
+0      engine  . 2:2(0) ack 1002
+0      expect  state CLOSING
"""
)
LAST_ACK = (
    CLOSE_WAIT
    + """
+0      finish
+0      engine  F. 1:1(0) ack 1002
+0      expect  state LAST-ACK
"""
)
TIME_WAIT = (
    FIN_WAIT_2
    + """
+0.001  guest   F. 1001 ack 2
+0      engine  . 2:2(0) ack 1002
+0      expect  state TIME-WAIT
"""
)
LATER_STATES = {
    "ESTABLISHED": ("", 1001, 1),
    "FIN-WAIT-1": (FIN_WAIT_1, 1001, 2),
    "FIN-WAIT-2": (FIN_WAIT_2, 1001, 2),
    "CLOSE-WAIT": (CLOSE_WAIT, 1002, 1),
    "CLOSING": (CLOSING, 1002, 2),
    "LAST-ACK": (LAST_ACK, 1002, 2),
    "TIME-WAIT": (TIME_WAIT, 1002, 2),
}

# -- in order ---------------------------------------------------------------------------------------------------------

test_the_guest_finishes_first_and_still_gets_an_answer = transcript(
    OPEN
    + """
+0      guest   FP. 1001:1006(5) ack 1 "query"
+0      engine  . 1:1(0) ack 1007
+0      expect  state CLOSE-WAIT
+0      expect  signals OPENED PEER_FINISHED
+0.1    write   3000
+0      engine  . 1:1461(1460) ack 1007
+0      engine  . 1461:2921(1460) ack 1007
+0      engine  P. 2921:3001(80) ack 1007
+0.001  guest   . 1007 ack 3001
+0      write   "bye"
+0      engine  P. 3001:3004(3) ack 1007 "bye"
+0      finish
+0      engine  F. 3004:3004(0) ack 1007
+0      expect  state LAST-ACK
+0.001  guest   . 1007 ack 3005
+0      expect  state CLOSED
+0      expect  signals OPENED PEER_FINISHED ENDED
+0      expect  deadline none
"""
)

test_the_host_finishes_first_and_still_gets_the_rest = transcript(
    OPEN
    + """
+0      write   "hello"
+0      engine  P. 1:6(5) ack 1001
+0      finish
+0      engine  F. 6:6(0) ack 1001
+0      expect  state FIN-WAIT-1
+0.001  guest   . 1001 ack 7
+0      expect  state FIN-WAIT-2
+600    nothing                                        # half closed for as long as the guest likes
+0      guest+  . 1001:2461(1460) ack 7
+0      guest   P. 2461:3921(1460) ack 7
+0      engine  . 7:7(0) ack 3921
+0      expect  received 2920
+0      guest   F. 3921 ack 7
+0      engine  . 7:7(0) ack 3922
+0      expect  state TIME-WAIT
+0      expect  signals OPENED PEER_FINISHED ENDED
+59.9   expect  state TIME-WAIT
+0.1    nothing
+0      expect  state CLOSED
+0      expect  deadline none
"""
)

test_fin_rides_on_the_last_bytes = transcript(
    OPEN
    + """
+0      room    0
+0      write   "hello"
+0      finish
+0      room    all
+0      engine  FP. 1:6(5) ack 1001
+0      expect  state FIN-WAIT-1
+0.001  guest   . 1001 ack 7
+0      expect  state FIN-WAIT-2
"""
)

test_bytes_after_finish_are_not_sent = transcript(
    OPEN
    + """
+0      finish
+0      engine  F. 1:1(0) ack 1001
+0      write   "late"
+0      expect  room 0
+0.001  guest   . 1001 ack 2
+5      nothing
"""
)

test_fin_and_acknowledgement_in_one_segment = transcript(
    OPEN
    + FIN_WAIT_1
    + """
+0.001  guest   F. 1001 ack 2
+0      engine  . 2:2(0) ack 1002
+0      expect  state TIME-WAIT
"""
)

test_both_finish_at_once = transcript(
    OPEN
    + CLOSING
    + """
+0.001  guest   . 1002 ack 2
+0      expect  state TIME-WAIT
+0      expect  signals OPENED PEER_FINISHED ENDED
+60     nothing
+0      expect  state CLOSED
"""
)

test_both_finish_at_once_and_the_guests_last_word_is_lost = transcript(
    OPEN
    + CLOSING
    + """
+0.200  engine  FP. 1:1(0) ack 1002
+0.001  guest   . 1002 ack 2
+0      expect  state TIME-WAIT
"""
)

test_a_lost_fin_is_repeated_until_the_guest_counts_as_gone = transcript(
    OPEN
    + FIN_WAIT_1
    + "".join(
        f"+{delay} engine FP. 1:1(0) ack 1001\n"
        for delay in (0.201, 0.402, 0.804, 1.608, 3.216, 6.432, 12.864, 25.728, 51.456, 60)
    )
    + """
+60     engine  R. 2:2(0) ack 1001
+0      expect  state CLOSED
+0      expect  signals OPENED GAVE_UP ENDED
"""
)

test_the_last_bytes_and_fin_are_repeated_together = transcript(
    OPEN
    + """
+0      write   "hello"
+0      engine  P. 1:6(5) ack 1001
+0      finish
+0      engine  F. 6:6(0) ack 1001
+0.201  engine  FP. 1:6(5) ack 1001
+0.001  guest   . 1001 ack 7
+0      expect  state FIN-WAIT-2
"""
)

test_last_ack_repeats_its_fin = transcript(
    OPEN
    + LAST_ACK
    + """
+0.201  engine  FP. 1:1(0) ack 1002
+0.001  guest   . 1002 ack 2
+0      expect  state CLOSED
"""
)

test_data_of_the_guest_after_our_fin_is_acknowledged = transcript(
    OPEN
    + FIN_WAIT_1
    + """
+0      guest   . 1001:1101(100) ack 1                 # before it knows of our FIN
+0.04   engine  . 2:2(0) ack 1101
+0      guest   FP. 1101:1201(100) ack 2
+0      engine  . 2:2(0) ack 1202
+0      expect  state TIME-WAIT
+0      expect  received 200
"""
)

# -- TIME-WAIT --------------------------------------------------------------------------------------------------------

test_time_wait_repeats_its_acknowledgement_and_starts_over = transcript(
    OPEN
    + TIME_WAIT
    + """
+40     guest   F. 1001 ack 2                          # our acknowledgement was lost
+0      engine  . 2:2(0) ack 1002
+40     guest   F. 1001 ack 2
+0      engine  . 2:2(0) ack 1002
+59.9   expect  state TIME-WAIT
+0.1    nothing
+0      expect  state CLOSED
"""
)

test_k9_a_reset_does_not_end_time_wait = transcript(
    OPEN
    + TIME_WAIT
    + """
+1      guest   R 1002                                 # RFC 1337: from an old duplicate, as likely as not
+0      guest   R. 1002 ack 2
+0      expect  state TIME-WAIT
+0      expect  signals OPENED PEER_FINISHED ENDED
"""
)

test_k9_old_segments_do_not_end_time_wait = transcript(
    OPEN
    + TIME_WAIT
    + """
+1      guest   . 1001 ack 1
+0      engine  . 2:2(0) ack 1002
+1      guest   S 500:500(0) win 1000 <mss 1460>
+0      engine  . 2:2(0) ack 1002
+1      guest   . 1002:1102(100) ack 2                 # there is nothing beyond its FIN
+0      engine  . 2:2(0) ack 1002
+57     nothing
+0      expect  state CLOSED
+0      expect  received 0
"""
)

test_abort_in_time_wait_says_nothing = transcript(
    OPEN
    + TIME_WAIT
    + """
+0      abort
+0      expect  state CLOSED
+60     nothing
"""
)

test_paws_guards_time_wait = transcript(
    OPEN_TS
    + """
+0      finish
+0      engine  F. 1:1(0) ack 1001
+0.001  guest   F. 1001 ack 2 <TS val 5000 ecr 0>
+0      engine  . 2:2(0) ack 1002
+1      guest   F. 1001 ack 2 <TS val 4000 ecr 0>
+0      engine  . 2:2(0) ack 1002
"""
)


# -- by reset ---------------------------------------------------------------------------------------------------------


def _play(script: str, isn: int = 0xFFFF_FFFE, offset: int = 0xFFFF_FC14) -> Player:
    player = Player(isn=isn, offset=offset)
    player.play(script)
    return player


def reset_script(state: str) -> str:
    """The guest resets the connection in `state`, after others have tried to."""
    lead, guest, ours = LATER_STATES[state]
    return (
        OPEN
        + lead
        + f"""
+0.01   guest   R {guest - 1}
+0      guest   R {guest + 100_000}
+0      guest   R. {guest - 1} ack {ours}
+0      nothing
+0      guest   R {guest + 1}
+0      engine  . {ours}:{ours}(0) ack {guest}
+0      guest   R {guest + 1000}                       # ten challenges a second, no more
+0      nothing
+0      expect  state {state}
+0      guest   R {guest}
+0      expect  state CLOSED
+600    nothing
+0      expect  deadline none
"""
    )


@pytest.mark.parametrize("state", [name for name in LATER_STATES if name != "TIME-WAIT"])
def test_k9_f8_a_reset_counts_at_its_exact_number_only(state: str) -> None:
    """RFC 5961 section 3.2, in every state that has a window."""
    player = _play(reset_script(state))
    assert player.signals & st.PEER_RESET
    assert player.signals & st.ENDED


@pytest.mark.parametrize("state", list(LATER_STATES))
def test_f8_a_syn_is_answered_with_a_challenge(state: str) -> None:
    """RFC 5961 section 4.2: wherever it lies, it opens nothing and ends nothing."""
    lead, guest, ours = LATER_STATES[state]
    for number in (guest, guest + 50, guest - 900, guest + 1_000_000):
        _play(
            OPEN
            + lead
            + f"""
+0.01   guest   S {number}:{number}(0) win 100 <mss 1460>
+0      engine  . {ours}:{ours}(0) ack {guest}
+0.05   guest   S {number}:{number}(0) win 100 <mss 1460>
+0      nothing
+0.05   guest   S. {number}:{number}(0) ack 1 win 100 <mss 1460>
+0      engine  . {ours}:{ours}(0) ack {guest}
+0      expect  state {state}
"""
        )


@pytest.mark.parametrize("state", ["ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK"])
def test_abort_resets_the_guest(state: str) -> None:
    lead, guest, ours = LATER_STATES[state]
    player = _play(
        OPEN
        + lead
        + f"""
+0.01   abort
+0      engine  R. {ours}:{ours}(0) ack {guest}
+0      expect  state CLOSED
+0      expect  deadline none
+0      guest   . {guest} ack {ours}
+0      guest   F. {guest} ack {ours}
+0      abort
+600    nothing
"""
    )
    assert player.signals & st.ENDED
    assert not player.signals & st.PEER_RESET


@pytest.mark.parametrize("state", list(LATER_STATES))
def test_f8_an_acknowledgement_out_of_range_is_answered_and_dropped(state: str) -> None:
    """RFC 5961 section 5.2."""
    lead, guest, ours = LATER_STATES[state]
    for number in (ours + 1, ours + 1_000_000, ours + (1 << 31) - 1):
        _play(
            OPEN
            + lead
            + f"""
+0.01   guest   . {guest} ack {number}
+0      engine  . {ours}:{ours}(0) ack {guest}
+0      guest   . {guest} ack {number}
+0      nothing
+0      expect  state {state}
"""
        )


def test_f8_blind_data_with_an_old_acknowledgement_is_dropped() -> None:
    """RFC 5961 section 5.2: SND.UNA less the largest window is as old as an acknowledgement may be."""
    for age in (65_536 + 1, 1 << 30):
        _play(
            OPEN
            + f"""
+0.01   guest   . 1001:1101(100) ack {(1 - age) % (1 << 32)} "{"x" * 100}"
+0      engine  . 1:1(0) ack 1001
+0      expect  received 0
"""
        )
    _play(
        OPEN
        + f"""
+0.01   guest   . 1001:1101(100) ack {(1 - 65_535) % (1 << 32)} "{"x" * 100}"
+0      expect  received 100
+0.04   engine  . 1:1(0) ack 1101
"""
    )


test_f8_data_out_of_the_window_is_answered_ten_times_a_second = transcript(
    OPEN_SACK
    + """
+0      guest   . 900000:900100(100) ack 1
+0      engine  . 1:1(0) ack 1001
+0.05   guest   . 900000:900100(100) ack 1
+0      nothing
+0.05   guest   . 900000:900100(100) ack 1
+0      engine  . 1:1(0) ack 1001
+0      expect  received 0
"""
)

test_a_guest_that_forgot_the_connection_resets_it_when_challenged = transcript(
    OPEN_TS
    + """
+10     guest   S 77000:77000(0) win 64240 <mss 1460>   # it has started anew, and does not know of time stamps
+0      engine  . 1:1(0) ack 1001
+0      guest   R 1001 <no TS>
+0      expect  state CLOSED
+0      expect  signals OPENED PEER_RESET ENDED
"""
)

test_a_reset_while_the_host_has_bytes_left_ends_everything = transcript(
    OPEN
    + """
+0      write   60000
"""
    + "".join(f"+0 engine . {n}:{n + 1460}(1460) ack 1001\n" for n in range(1, 14601, 1460))
    + """
+0.01   guest   R 1001
+0      expect  state CLOSED
+0      expect  room 0
+0      write   "more"
+600    nothing
+0      expect  deadline none
"""
)

test_what_came_before_a_reset_is_still_there = transcript(
    OPEN
    + """
+0      guest+  P. 1001:1006(5) ack 1 "hello"
+0      guest   R 1006
+0      expect  received "hello"
+0      expect  signals OPENED PEER_RESET ENDED
"""
)
