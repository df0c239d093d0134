"""Transcripts of the retransmission timer: how long it waits, what it repeats, and what an idle time changes."""

from __future__ import annotations

from .transcript import OPEN, OPEN_SACK, OPEN_TS, burst, transcript

test_the_timer_backs_off_and_the_guest_counts_as_gone = transcript(
    OPEN
    + """
+0      write   "hello"
+0      engine  P. 1:6(5) ack 1001
+0.201  engine  P. 1:6(5) ack 1001
+0.402  engine  P. 1:6(5) ack 1001
+0.804  engine  P. 1:6(5) ack 1001
+1.608  engine  P. 1:6(5) ack 1001
+3.216  engine  P. 1:6(5) ack 1001
+6.432  engine  P. 1:6(5) ack 1001
+12.864 engine  P. 1:6(5) ack 1001
+25.728 engine  P. 1:6(5) ack 1001
+51.456 engine  P. 1:6(5) ack 1001
+60     engine  P. 1:6(5) ack 1001
+60     engine  R. 6:6(0) ack 1001
+0      expect  state CLOSED
+0      expect  signals OPENED GAVE_UP ENDED
"""
)

test_the_timer_follows_the_round_trip = transcript(
    OPEN  # 1 ms
    + """
+0      write   "a"
+0      engine  P. 1:2(1) ack 1001
+0.1    guest   . 1001 ack 2
# SRTT is 13.375 ms and RTTVAR 25.125 ms: RTO is the former and four times the latter, or 200 ms where those are more.
+0      write   "b"
+0      engine  P. 2:3(1) ack 1001
+0.2134 engine  P. 2:3(1) ack 1001
"""
)

test_the_timer_allows_for_four_times_the_variation = transcript(
    OPEN.replace("+0.001  guest", "+0.300  guest")
    + """
+0      write   "a"
+0      engine  P. 1:2(1) ack 1001
+0.9    engine  P. 1:2(1) ack 1001
"""
)

test_karn_after_a_fast_repetition_too = transcript(
    OPEN_SACK
    + "+0 write 5840\n"
    + burst(1, 3)
    + """
+0      engine  P. 4381:5841(1460) ack 1001
+0.01   guest   . 1001 ack 1 <sack 1461:5841>
+0      engine  P. 1:1461(1460) ack 1001
+0.15   guest   . 1001 ack 5841
+0      write   "x"
+0      engine  P. 5841:5842(1) ack 1001
+0.22   engine  P. 5841:5842(1) ack 1001
"""
)

test_karn_a_repeated_segment_is_not_timed = transcript(
    OPEN
    + """
+0      write   "a"
+0      engine  P. 1:2(1) ack 1001
+0.201  engine  P. 1:2(1) ack 1001
+0.3    guest   . 1001 ack 2                           # of which one?
# The backed-off timeout stays until something is measured.
+0      write   "b"
+0      engine  P. 2:3(1) ack 1001
+0.402  engine  P. 2:3(1) ack 1001
+0      guest   . 1001 ack 3
+0      write   "c"
+0      engine  P. 3:4(1) ack 1001
+0.001  guest   . 1001 ack 4
+0      write   "d"
+0      engine  P. 4:5(1) ack 1001
+0.201  engine  P. 4:5(1) ack 1001
"""
)

test_an_echoed_stamp_is_timed_all_the_same = transcript(
    OPEN_TS
    + """
+0      write   "a"
+0      engine  P. 1:2(1) ack 1001
+0.201  engine  P. 1:2(1) ack 1001
+0.002  guest   . 1001 ack 2
+0      write   "b"
+0      engine  P. 2:3(1) ack 1001
+0.2011 engine  P. 2:3(1) ack 1001
"""
)

test_an_echo_of_nothing_we_sent_is_not_timed = transcript(
    OPEN_TS
    + """
+0      write   "a"
+0      engine  P. 1:2(1) ack 1001
+0.201  engine  P. 1:2(1) ack 1001
+0.002  guest   . 1001 ack 2 <TS val 500 ecr 3000000000>
+0      write   "b"
+0      engine  P. 2:3(1) ack 1001
+0.402  engine  P. 2:3(1) ack 1001
"""
)

test_after_a_timeout_slow_start_begins_with_one_segment = transcript(
    OPEN
    + "+0 write 8760\n"
    + burst(1, 5)
    + """
+0      engine  P. 7301:8761(1460) ack 1001
+0.201  engine  P. 1:1461(1460) ack 1001
+0.01   guest   . 1001 ack 1461
+0      engine  P. 1461:2921(1460) ack 1001
+0      engine  P. 2921:4381(1460) ack 1001
+0.01   guest   . 1001 ack 4381
+0      engine  P. 4381:5841(1460) ack 1001
+0      engine  P. 5841:7301(1460) ack 1001
+0      engine  P. 7301:8761(1460) ack 1001
+0.01   guest   . 1001 ack 8761
+0      expect  deadline none
"""
)

test_after_a_timeout_what_had_arrived_does_not_open_the_window = transcript(
    OPEN_SACK
    + "+0 write 14600\n"
    + burst(1, 9)
    + """
+0      engine  P. 13141:14601(1460) ack 1001
+0.010  guest   . 1001 ack 1 <sack 1461:2921>
+0.005  engine  P. 1:1461(1460) ack 1001
+0.220  engine  P. 1:1461(1460) ack 1001
+0.010  guest   . 1001 ack 2921                        # half of it is news: two segments, not three
+0      engine  P. 2921:4381(1460) ack 1001
+0      engine  P. 4381:5841(1460) ack 1001
+0      nothing
"""
)

test_after_an_idle_time_the_window_starts_anew = transcript(
    OPEN
    + "+0 write 43800\n"
    + burst(1, 10)
    + "+0.01 guest . 1001 ack 14601\n"
    + burst(14601, 19)
    + "+0 engine P. 42341:43801(1460) ack 1001\n"
    + "+0.01 guest . 1001 ack 43801\n"
    # Nothing was sent for longer than a timeout: ten segments again, whatever the guest has said (RFC 5681, 4.1).
    + "+1 guest P. 1001:1101(100) ack 43801\n+0 write 29200\n"
    + burst(43801, 10, ack=1101)
    + "+0 nothing\n"
)
