"""Transcripts of the window we offer, and of the time stamps that guard it (PAWS)."""

from __future__ import annotations

from .transcript import OPEN, OPEN_TS, transcript

# -- the window we offer ----------------------------------------------------------------------------------------------

test_a_host_that_stops_closes_the_window = transcript(
    OPEN
    + """
+0      host    stops
+0      guest+  . 1001:31001(30000) ack 1
+0      guest   . 31001:61001(30000) ack 1
+0      engine  . 1:1(0) ack 61001 win 5535
+0      guest   . 61001:66536(5535) ack 1
+0      engine  . 1:1(0) ack 66536 win 0
# A probe of the closed window is answered, and not taken.
+0.3    guest   . 66536:66537(1) ack 1
+0      engine  . 1:1(0) ack 66536 win 0
+0      expect  received 65535
# Small steps do not open it (RFC 9293 section 3.8.6.2.2), two segments do.
+0      host    takes 2000
+0      nothing
+0      host    takes 1000
+0      engine  . 1:1(0) ack 66536 win 3000
+0      guest   . 66536:66636(100) ack 1
+0      host    goes on
+0      engine  . 1:1(0) ack 66636 win 65535
"""
)

test_an_update_does_not_wait_for_a_delayed_acknowledgement = transcript(
    OPEN
    + """
+0      host    stops
+0      guest+  . 1001:41001(40000) ack 1
+0      guest   . 41001:66001(25000) ack 1
+0      engine  . 1:1(0) ack 66001 win 535
+0      guest   . 66001:66536(535) ack 1
+0.001  host    goes on
+0      engine  . 1:1(0) ack 66536 win 65535
"""
)

test_an_update_is_sent_by_a_side_whose_own_data_is_blocked = transcript(
    OPEN
    + """
+0      guest   . 1001 ack 1 win 0
+0      write   100
+0      host    stops
+0      guest+  . 1001:41001(40000) ack 1
+0      guest   . 41001:66536(25535) ack 1
+0      engine  . 1:1(0) ack 66536 win 0
+0.001  host    takes 30000
+0      engine  . 1:1(0) ack 66536 win 30000
"""
)

test_a_probe_that_linux_sends_is_answered = transcript(
    OPEN
    + """
+0      host    stops
+0      guest+  . 1001:41001(40000) ack 1
+0      guest   . 41001:66536(25535) ack 1
+0      engine  . 1:1(0) ack 66536 win 0
+0.2    guest   . 66535 ack 1                          # one below what is expected: it wants an answer
+0      engine  . 1:1(0) ack 66536 win 0
+0.4    guest   . 66535 ack 1
+0      engine  . 1:1(0) ack 66536 win 0
"""
)

test_bytes_beyond_the_window_are_cut_off = transcript(
    OPEN
    + """
+0      host    stops
+0      guest   . 1001:61001(60000) ack 1
+0      engine  . 1:1(0) ack 61001 win 5535
+0      guest   P. 61001:67001(6000) ack 1
+0      engine  . 1:1(0) ack 66536 win 0
+0      expect  received 65535
"""
)

test_a_fin_beyond_the_window_is_cut_off_with_the_bytes = transcript(
    OPEN
    + """
+0      host    stops
+0      guest   . 1001:61001(60000) ack 1
+0      engine  . 1:1(0) ack 61001 win 5535
+0      guest   FP. 61001:67001(6000) ack 1
+0      engine  . 1:1(0) ack 66536 win 0
+0      expect  state ESTABLISHED
"""
)

test_a_bare_fin_at_a_closed_window_is_taken = transcript(
    OPEN
    + """
+0      host    stops
+0      guest+  . 1001:41001(40000) ack 1
+0      guest   . 41001:66536(25535) ack 1
+0      engine  . 1:1(0) ack 66536 win 0
+0      guest   F. 66536 ack 1
+0      engine  . 1:1(0) ack 66537 win 0
+0      expect  state CLOSE-WAIT
"""
)

test_an_acknowledgement_counts_at_a_closed_window = transcript(
    OPEN
    + """
+0      host    stops
+0      guest+  . 1001:41001(40000) ack 1
+0      guest   . 41001:66536(25535) ack 1
+0      engine  . 1:1(0) ack 66536 win 0
+0      write   100
+0      engine  P. 1:101(100) ack 66536 win 0
+0.01   guest   . 66536:66537(1) ack 101
+0      engine  . 101:101(0) ack 66536 win 0
+1      nothing
"""
)

test_an_acknowledgement_from_the_edge_of_the_window_counts = transcript(
    OPEN
    + """
+0      host    stops
+0      write   100
+0      engine  P. 1:101(100) ack 1001
+0      guest+  . 2461:42461(40000) ack 1
+0      guest   . 42461:66536(24075) ack 1              # the first segment of a full window is lost
+0      engine  . 101:101(0) ack 1001
+0      engine  . 101:101(0) ack 1001
+0.01   guest   . 66536 ack 101
+1      nothing                                        # else the 100 bytes would be sent again
"""
)

test_a_window_that_was_offered_is_not_taken_back = transcript(
    OPEN_TS
    + """
+0      host    stops
+0      guest   . 1001:2449(1448) ack 1
+0.04   engine  . 1:1(0) ack 2449 win 501              # 64,128: rounded up from 64,088
+0      guest+  . 2449:42449(40000) ack 1
+0      guest   . 42449:66577(24128) ack 1              # all of it
+0      engine  . 1:1(0) ack 66577 win 0
+0      expect  received 65576
"""
)

test_a_window_is_not_rounded_up_for_ever = transcript(
    OPEN_TS
    + """
+0      host    stops
+0      guest+  . 1001:41001(40000) ack 1
+0      guest   . 41001:66441(25440) ack 1              # 95 bytes are left
+0      engine  . 1:1(0) ack 66441 win 1
+0      guest   . 66441:66568(127) ack 1
+0.04   engine  . 1:1(0) ack 66568 win 1
+0      expect  received 65567
"""
)

test_the_window_doubles_while_the_host_keeps_up = transcript(
    OPEN_TS
    + """
+0      guest+  . 1001:31001(30000) ack 1
+0      guest   . 31001:61001(30000) ack 1
+0      engine  . 1:1(0) ack 61001 win 512
+0      guest   . 61001:91001(30000) ack 1
+0      engine  . 1:1(0) ack 91001 win 1024
+0      guest+  . 91001:151001(60000) ack 1
+0      guest+  . 151001:211001(60000) ack 1
+0      guest   . 211001:222001(11000) ack 1
+0      engine  . 1:1(0) ack 222001 win 1024
+0      guest   . 222001:224001(2000) ack 1
+0.04   engine  . 1:1(0) ack 224001 win 2048
"""
)

test_the_window_never_grows_beyond_its_limit = transcript(
    OPEN_TS
    + """
+0      guest+  . 1001:31001(30000) ack 1
+0      guest   . 31001:61001(30000) ack 1
+0      engine  . 1:1(0) ack 61001
+0      guest+  . 61001:91001(30000) ack 1
+0      guest   . 91001:121001(30000) ack 1
+0      engine  . 1:1(0) ack 121001
+0      guest+  . 121001:151001(30000) ack 1
+0      guest   . 151001:181001(30000) ack 1
+0      engine  . 1:1(0) ack 181001 win 625            # 80,000 bytes
""",
    max_receive_window=80_000,
)

test_a_small_window_limit_holds_from_the_start = transcript(
    """
+0      guest   S 1000:1000(0) win 65535 <mss 1460,wscale 0>
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 5000 <mss 1460,wscale 7>
+0      guest   . 1001 ack 1
+0      host    stops
+0      guest   . 1001:7001(6000) ack 1
+0      engine  . 1:1(0) ack 6001 win 0
+0      expect  received 5000
""",
    max_receive_window=5000,
)

# -- time stamps and PAWS ---------------------------------------------------------------------------------------------

test_the_stamp_of_the_left_edge_is_echoed = transcript(
    OPEN_TS
    + """
+0      guest   . 1001:1101(100) ack 1 <TS val 1000 ecr 0>
+0.01   guest   . 1101:1201(100) ack 1 <TS val 1010 ecr 0>
+0.03   engine  . 1:1(0) ack 1201 <TS val 41 ecr 1000>   # the one that the acknowledgement waits for longest
+0      guest   . 1301:1401(100) ack 1 <TS val 1050 ecr 0>
+0      engine  . 1:1(0) ack 1201 <TS val 41 ecr 1000,sack 1301:1401>
+0      guest   . 1201:1301(100) ack 1 <TS val 1060 ecr 0>
+0      engine  . 1:1(0) ack 1401 <TS val 41 ecr 1060>
"""
)

test_a_segment_from_long_ago_is_answered_and_dropped = transcript(
    OPEN_TS
    + """
+0      guest   . 1001:1101(100) ack 1 <TS val 5000 ecr 0>
+0.04   engine  . 1:1(0) ack 1101 <TS val 41 ecr 5000>
+0      guest   . 1101:1201(100) ack 1 <TS val 4999 ecr 0>
+0      engine  . 1:1(0) ack 1101 <TS val 41 ecr 5000>
+0      expect  received 100
+0      guest   . 1101:1201(100) ack 1 <TS val 5000 ecr 0>
+0.04   engine  . 1:1(0) ack 1201 <TS val 81 ecr 5000>
"""
)

test_a_stamp_from_long_ago_is_dropped_though_it_was_seen_before = transcript(
    OPEN_TS
    + """
+0      guest   . 1001:1101(100) ack 1 <TS val 1000 ecr 5>
+0.04   engine  . 1:1(0) ack 1101 <TS val 41 ecr 1000>
+0      guest   U. 1101:1201(100) ack 1 <TS val 2000 ecr 5>
+0.04   engine  . 1:1(0) ack 1201 <TS val 81 ecr 2000>
+0      guest   . 1201:1301(100) ack 1 <TS val 1000 ecr 5>
+0      engine  . 1:1(0) ack 1201 <TS val 81 ecr 2000>
+0      expect  received 200
"""
)

test_k8_stamps_wrap = transcript("""
+0      guest   S 1000:1000(0) win 64240 <mss 1460,TS val 4294967290 ecr 0>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460,TS val 0 ecr 4294967290>
+0      guest   . 1001 ack 1 <TS val 4294967295 ecr 0>
+0      guest   . 1001:1101(100) ack 1 <TS val 5 ecr 0>
+0.04   engine  . 1:1(0) ack 1101 <TS val 40 ecr 5>
""")

test_a_stamp_that_was_kept_for_24_days_says_nothing = transcript(
    OPEN_TS
    + """
+0      guest   . 1001:1101(100) ack 1 <TS val 2000000000 ecr 0>
+0.04   engine  . 1:1(0) ack 1101
+2160000 guest  . 1101:1201(100) ack 1 <TS val 100 ecr 0>
+0.04   engine  . 1:1(0) ack 1201
"""
)

test_a_segment_without_its_stamp_is_dropped_in_silence = transcript(
    OPEN_TS
    + """
+0      guest   . 1001:1101(100) ack 1 <no TS>
+0      nothing
+0      expect  received 0
+0      guest   R 1001 <no TS>                         # a reset needs none (RFC 7323 section 3.2)
+0      expect  state CLOSED
"""
)
