"""Transcripts of what goes to the guest: segments, windows, slow start, a closed window, a full link, keep-alive."""

from __future__ import annotations

from .transcript import OPEN, OPEN_SACK, OPEN_TS, burst, transcript

# -- segments and windows ---------------------------------------------------------------------------------------------

test_bytes_go_out_at_once_and_push_the_last_one = transcript(
    OPEN
    + """
+0      write   "hello"
+0      engine  P. 1:6(5) ack 1001 win 65535 "hello"
+0      write   "again"                                # no waiting for acknowledgements (no Nagle)
+0      engine  P. 6:11(5) ack 1001 "again"
+0.01   guest   . 1001 ack 11
+5      nothing
+0      expect  deadline none
"""
)

test_the_initial_window_is_ten_segments = transcript(
    OPEN
    + "+0 write 30000\n"
    + burst(1, 10)
    + "+0 nothing\n+0.01 guest . 1001 ack 14601\n"
    + burst(14601, 10)
    # slow start: 14,600 bytes more, and the stream ends
    + "+0 engine P. 29201:30001(800) ack 1001\n"
)

test_slow_start_counts_bytes_not_acknowledgements = transcript(
    OPEN
    + "+0 write 60000\n"
    + burst(1, 10)
    + "+0.01 guest . 1001 ack 2921\n"  # two segments: the window is twelve now
    + burst(14601, 4)
    + "+0.01 guest . 1001 ack 17521\n"  # ten at once: 22 segments, 2 of them on their way
    + burst(20441, 20)
    + "+0 nothing\n"
)

test_the_guests_window_holds_data_back = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 3000
+0      write   5000
"""
    + burst(1, 2)
    + """
+0      nothing                                        # 80 bytes would fit: a sliver of the largest window
+0.01   guest   . 1001 ack 1461 win 3000
+0      engine  . 2921:4381(1460) ack 1001
+0.01   guest   . 1001 ack 4381 win 3000
+0      engine  P. 4381:5001(620) ack 1001
"""
)

test_a_guest_with_small_windows_gets_small_segments = transcript("""
+0      guest   S 1000:1000(0) win 100 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   . 1001 ack 1 win 100
+0      write   250
+0      engine  . 1:101(100) ack 1001
+0.01   guest   . 1001 ack 101 win 100
+0      engine  . 101:201(100) ack 1001
+0.01   guest   . 1001 ack 201 win 100
+0      engine  P. 201:251(50) ack 1001
""")

test_f6_a_window_of_one_byte = transcript("""
+0      guest   S 1000:1000(0) win 1 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   . 1001 ack 1
+0      write   "abc"
+0      engine  . 1:2(1) ack 1001 "a"
+0.01   guest   . 1001 ack 2
+0      engine  . 2:3(1) ack 1001 "b"
+0.01   guest   . 1001 ack 3
+0      engine  P. 3:4(1) ack 1001 "c"
""")

# -- a closed window --------------------------------------------------------------------------------------------------

test_f6_a_window_closed_for_minutes_is_probed_and_nothing_given_up = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 0
+0      write   3000
+0.201  engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+0.402  engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+0.804  engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+1.608  engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+3.216  engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+6.432  engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+12.864 engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+25.728 engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+51.456 engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+60     engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+60     engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+60     engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 1 win 0
+60     engine  . 1:2(1) ack 1001
+0      expect  state ESTABLISHED
+0      guest   . 1001 ack 1 win 65535
"""
    + burst(1, 2)
    + """
+0      engine  P. 2921:3001(80) ack 1001
"""
)

test_a_probe_whose_byte_is_taken_counts_as_sent = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 0
+0      write   "hello"
+0.201  engine  . 1:2(1) ack 1001 "h"
+0      guest   . 1001 ack 2 win 0
+0.201  engine  . 2:3(1) ack 1001 "e"
+0      guest   . 1001 ack 3 win 100
+0      engine  P. 3:6(3) ack 1001 "llo"
+0      guest   . 1001 ack 6
"""
)

test_a_probe_nobody_answers = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 0
+0      write   "hello"
+0.201  engine  . 1:2(1) ack 1001
+0.402  engine  . 1:2(1) ack 1001
+0.804  engine  . 1:2(1) ack 1001
+1.608  engine  . 1:2(1) ack 1001
+3.216  engine  . 1:2(1) ack 1001
+6.432  engine  . 1:2(1) ack 1001
+12.864 engine  . 1:2(1) ack 1001
+25.728 engine  . 1:2(1) ack 1001
+51.456 engine  . 1:2(1) ack 1001
+60     engine  . 1:2(1) ack 1001
+60     engine  R. 1:1(0) ack 1001
+0      expect  state CLOSED
+0      expect  signals OPENED GAVE_UP ENDED
"""
)

test_a_window_that_never_takes_a_whole_segment_is_used_after_a_while = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 500
+0      write   2000
+0.200  nothing
+0.001  engine  . 1:501(500) ack 1001
+0.01   guest   . 1001 ack 501 win 500
+0.2021 engine  . 501:1001(500) ack 1001
"""
)

test_a_window_update_lets_data_out = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 0
+0      write   "hello"
+0.1    guest   . 1001 ack 1 win 1000
+0      engine  P. 1:6(5) ack 1001 "hello"
"""
)

test_an_old_segment_does_not_bring_back_an_old_window = transcript(
    OPEN
    + """
+0      guest   . 1001:1101(100) ack 1 win 1000
+0      guest   . 1101 ack 1 win 60000
+0      guest   . 1001:1151(150) ack 1 win 1000        # was on its way for longer
+0      write   2000
+0      engine  . 1:1461(1460) ack 1151
+0      engine  P. 1461:2001(540) ack 1151
"""
)

test_a_window_that_shrinks_over_what_was_sent = transcript(
    OPEN
    + "+0 write 4380\n"
    + burst(1, 2)
    + """
+0      engine  P. 2921:4381(1460) ack 1001
+0.01   guest   . 1001 ack 1461 win 0
# What lies beyond the edge is said again, as a probe would be, and nobody gives up while the guest answers.
+0.201  engine  P. 1461:2921(1460) ack 1001
+0      guest   . 1001 ack 1461 win 0
"""
    + "".join(
        f"+{delay}  engine P. 1461:2921(1460) ack 1001\n+0 guest . 1001 ack 1461 win 0\n"
        for delay in (0.402, 0.804, 1.608, 3.216, 6.432, 12.864, 25.728, 51.456, 60, 60, 60, 60)
    )
    + """
+0      expect  state ESTABLISHED
+1      guest   . 1001 ack 4381 win 65535
+0      expect  deadline none
"""
)

test_fin_waits_for_the_window_too = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 5
+0      write   "hello"
+0      engine  P. 1:6(5) ack 1001 "hello"
+0      finish
+0.01   guest   . 1001 ack 6 win 0
+0      nothing
+0      expect  state ESTABLISHED
+0.2021 engine  . 5:5(0) ack 1001                      # no byte is left to probe with
+0      guest   . 1001 ack 6 win 100
+0      engine  F. 6:6(0) ack 1001
+0      expect  state FIN-WAIT-1
"""
)

test_fin_does_not_ride_beyond_the_window = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 5
+0      room    0
+0      write   "hello"
+0      finish
+0      room    all
+0      engine  P. 1:6(5) ack 1001 "hello"
+0.01   guest   . 1001 ack 6 win 5
+0      engine  F. 6:6(0) ack 1001
"""
)

test_a_window_that_was_not_used_does_not_grow = transcript(
    OPEN
    + "".join(
        f"+0 write 1460\n+0 engine P. {n}:{n + 1460}(1460) ack 1001\n+0.01 guest . 1001 ack {n + 1460}\n"
        for n in range(1, 14601, 1460)
    )
    + "+0 write 30000\n"
    + burst(14601, 10)
    + "+0 nothing\n"
)

# -- the link is full -------------------------------------------------------------------------------------------------

test_data_waits_for_the_link_and_control_does_not = transcript(
    OPEN
    + """
+0      room    2
+0      write   5000
"""
    + burst(1, 2)
    + """
+0      expect  waiting
+0      room    0
+0      expect  waiting
+0      guest+  . 1001:2461(1460) ack 1
+0      guest   . 2461:3921(1460) ack 1
+0      engine  . 2921:2921(0) ack 3921
+0      finish
+0      nothing
+0      room    1
+0      engine  . 2921:4381(1460) ack 3921
+0      expect  waiting
+0      room    all
+0      engine  FP. 4381:5001(620) ack 3921
+0      expect  not waiting
+0.01   guest   . 3921 ack 5002
"""
)

test_repetitions_wait_for_the_link_too_and_nothing_is_lost = transcript(
    OPEN_SACK
    + "+0 write 14600\n"
    + burst(1, 9)
    + """
+0      engine  P. 13141:14601(1460) ack 1001
+0      room    0
+0.01   guest   . 1001 ack 1 <sack 2921:14601>
+0      expect  waiting
+0      room    1
+0      engine  P. 1:1461(1460) ack 1001
+0      expect  waiting
+0      room    1
+0      engine  P. 1461:2921(1460) ack 1001
+0      expect  not waiting
"""
)

test_a_timeout_while_the_link_is_full = transcript(
    OPEN
    + """
+0      write   "hello"
+0      engine  P. 1:6(5) ack 1001
+0      room    0
+0.3    nothing
+0      expect  waiting
+0      room    all
+0      engine  P. 1:6(5) ack 1001
"""
)

test_a_bare_fin_is_control = transcript(
    OPEN
    + """
+0      room    0
+0      finish
+0      engine  F. 1:1(0) ack 1001
"""
)

# -- keep-alive -------------------------------------------------------------------------------------------------------

test_a_silent_guest_is_not_asked_by_default = transcript(OPEN + "+86400 nothing\n")

test_a_silent_guest_is_asked_and_answers = transcript(
    OPEN
    + """
+60     engine  . 0:0(0) ack 1001
+0      guest   . 1001 ack 1
+60     engine  . 0:0(0) ack 1001
+0      guest   . 1001 ack 1
+50     guest   P. 1001:1101(100) ack 1
+0.04   engine  . 1:1(0) ack 1101
+59.96  engine  . 0:0(0) ack 1101
""",
    keepalive_idle=60.0,
    keepalive_interval=10.0,
    keepalive_probes=2,
)

test_a_guest_that_does_not_answer_is_given_up = transcript(
    OPEN
    + """
+60     engine  . 0:0(0) ack 1001
+10     engine  . 0:0(0) ack 1001
+10     engine  R. 1:1(0) ack 1001
+0      expect  state CLOSED
+0      expect  signals OPENED GAVE_UP ENDED
""",
    keepalive_idle=60.0,
    keepalive_interval=10.0,
    keepalive_probes=2,
)

test_a_guest_is_not_asked_twice_at_once = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 0
+0      write   "hello"
+0.201  engine  . 1:2(1) ack 1001
+0.402  engine  . 1:2(1) ack 1001
+0.804  engine  . 1:2(1) ack 1001
+1.608  engine  . 1:2(1) ack 1001
+3.216  engine  . 1:2(1) ack 1001
+6.432  engine  . 1:2(1) ack 1001
+0      guest   . 1001 ack 2 win 100
+0      engine  P. 2:6(4) ack 1001
+0.1    guest   . 1001 ack 6
+5      engine  . 5:5(0) ack 1001
""",
    keepalive_idle=5.0,
    keepalive_interval=2.0,
)

test_room_grows_with_what_the_guest_takes = transcript(
    OPEN_TS
    + "+0 expect room 65536\n+0 write 60000\n"
    + burst(1, 10, 1448)
    + "+0 expect room 5536\n+0.001 guest . 1001 ack 14481\n"
    + burst(14481, 20, 1448)
    + "+0 expect room 20016\n+0 finish\n+0 expect room 0\n"
)
