"""Transcripts of how a connection opens: from the guest, towards the guest, both at once, and what goes wrong."""

from __future__ import annotations

from .transcript import transcript

# -- from the guest ---------------------------------------------------------------------------------------------------

test_the_syn_waits_in_listen_until_the_dial_is_done = transcript("""
+0      guest   S 1000:1000(0) win 64240 <mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>
+0      expect  state LISTEN
+1      guest   S 1000:1000(0) win 64240 <mss 1460,sackOK,TS val 1100 ecr 0,nop,wscale 7>   # still dialling
+2      nothing
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460,sackOK,TS val 3000 ecr 1100,nop,wscale 7>
+0      expect  state SYN-RECEIVED
+0.001  guest   . 1001 ack 1
+0      expect  state ESTABLISHED
+0      expect  signals OPENED
+10     nothing
+0      expect  deadline none
""")

test_a_guest_that_starts_anew_while_the_dial_is_under_way = transcript("""
+0      guest   S 1000:1000(0) win 64240 <mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>
+1      guest   S 5000:5000(0) win 64240 <mss 1460>
+0      guest   S. 9000:9000(0) ack 1 win 64240 <mss 1460>
+1      accept
+0      engine  S. 0:0(0) ack 5001 win 65535 <mss 1460>
+0.001  guest   . 5001 ack 1
+0      expect  state ESTABLISHED
""")

test_a_syn_without_options_gets_only_our_mss = transcript("""
+0      guest   S 1000:1000(0) win 8192
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460>
+0      guest   . 1001 ack 1
# RFC 9293 section 3.7.1: without the option a segment holds 536 bytes.
+0      write   1000
+0      engine  . 1:537(536) ack 1001 win 65535
+0      engine  P. 537:1001(464) ack 1001 win 65535
+0      guest   . 1001 ack 1001
""")

test_options_are_mirrored_one_by_one_sack = transcript("""
+0      guest   S 1000:1000(0) win 8192 <mss 1460,sackOK>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460,sackOK>
""")

test_options_are_mirrored_one_by_one_scale = transcript("""
+0      guest   S 1000:1000(0) win 8192 <mss 1460,wscale 2>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460,wscale 7>
""")

test_options_are_mirrored_one_by_one_timestamps = transcript("""
+0      guest   S 1000:1000(0) win 8192 <mss 1460,TS val 7 ecr 0>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460,TS val 0 ecr 7>
""")

test_a_small_mss_of_the_guest_is_kept_to = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 900>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   . 1001 ack 1
+0      write   1000
+0      engine  . 1:901(900) ack 1001
+0      engine  P. 901:1001(100) ack 1001
""")

test_a_large_mss_of_the_guest_is_clamped_to_the_link = transcript(
    """
+0      guest   S 1000:1000(0) win 65535 <mss 65495>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1360>
+0      guest   . 1001 ack 1
+0      write   1500
+0      engine  . 1:1361(1360) ack 1001
+0      engine  P. 1361:1501(140) ack 1001
""",
    mss=1360,
)

test_k8_an_mss_of_1_counts_as_48 = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   . 1001 ack 1
+0      write   100
+0      engine  . 1:49(48) ack 1001
+0      engine  . 49:97(48) ack 1001
+0      engine  P. 97:101(4) ack 1001
""")

test_k8_an_mss_of_0_counts_as_none = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 0>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   . 1001 ack 1
+0      write   600
+0      engine  . 1:537(536) ack 1001
+0      engine  P. 537:601(64) ack 1001
""")

test_segments_leave_room_for_time_stamps = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460,TS val 5 ecr 0>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460,TS val 0 ecr 5>
+0      guest   . 1001 ack 1
+0      write   1500
+0      engine  . 1:1449(1448) ack 1001 <TS val 0 ecr 100>
+0      engine  P. 1449:1501(52) ack 1001 <TS val 0 ecr 100>
""")

test_the_guests_window_is_scaled_but_not_the_one_of_its_syn = transcript("""
+0      guest   S 1000:1000(0) win 1000 <mss 1460,nop,wscale 4>
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460,nop,wscale 7>
+0      guest   . 1001 ack 1 win 100                   # 1,600 bytes
+0      write   3000
+0      engine  . 1:1461(1460) ack 1001 win 512        # 65,536 bytes
+0.010  guest   . 1001 ack 1461 win 100
+0      engine  . 1461:2921(1460) ack 1001
+0      engine  P. 2921:3001(80) ack 1001
""")

test_k8_a_window_scale_of_15_counts_as_14 = transcript("""
+0      guest   S 1000:1000(0) win 1000 <mss 1460,nop,wscale 15>
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460,nop,wscale 7>
+0      guest   . 1001 ack 1 win 0
+0      write   20000
+0.2    engine  . 1:2(1) ack 1001                      # a probe of the closed window
+0      guest   . 1001 ack 2 win 1                     # 16,384 bytes
+0      engine  . 2:1462(1460) ack 1001
+0      engine  . 1462:2922(1460) ack 1001
+0      engine  . 2922:4382(1460) ack 1001
+0      engine  . 4382:5842(1460) ack 1001
+0      engine  . 5842:7302(1460) ack 1001
+0      engine  . 7302:8762(1460) ack 1001
+0      engine  . 8762:10222(1460) ack 1001
+0      engine  . 10222:11682(1460) ack 1001
+0      engine  . 11682:13142(1460) ack 1001
+0      engine  . 13142:14602(1460) ack 1001           # ten segments are the initial congestion window
""")

test_without_scaling_the_window_stays_below_64_kib = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460>
+0      guest   . 1001 ack 1
+0      guest+  . 1001:2461(1460) ack 1
+0      guest   . 2461:3921(1460) ack 1
+0      engine  . 1:1(0) ack 3921 win 65535
""")

test_data_in_a_syn_is_left_to_be_sent_again = transcript("""
+0      guest   S 1000:1005(5) win 65535 <mss 1460> "early"
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460>
+0      guest   P. 1001:1006(5) ack 1 "early"
+0      expect  state ESTABLISHED
+0      expect  received "early"
+0.04   engine  . 1:1(0) ack 1006
""")

test_data_comes_with_the_acknowledgement_that_opens = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   P. 1001:1006(5) ack 1 "hello"
+0      expect  state ESTABLISHED
+0      expect  received "hello"
+0      write   "world"
+0      engine  P. 1:6(5) ack 1006 "world"
""")

test_data_that_overtakes_the_acknowledgement_is_kept = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460,sackOK>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460,sackOK>
+0      guest   . 1101:1201(100) ack 1                 # its first hundred bytes are late
+0      engine  . 1:1(0) ack 1001 <sack 1101:1201>
+0      expect  state ESTABLISHED
+0      guest   . 1001:1101(100) ack 1
+0      engine  . 1:1(0) ack 1201
+0      expect  received 200
""")

test_data_without_an_acknowledgement_is_dropped = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   P 1001:1101(100)
+0      nothing
+0      expect  state SYN-RECEIVED
""")

test_data_and_fin_with_the_acknowledgement_that_opens = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   FP. 1001:1101(100) ack 1
+0      engine  . 1:1(0) ack 1102
+0      expect  state CLOSE-WAIT
+0      expect  received 100
+0      expect  signals OPENED PEER_FINISHED
""")

test_bytes_and_a_fin_of_the_host_wait_for_the_handshake = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      write   "banner"
+0      finish
+0      guest   . 1001 ack 1
+0      engine  FP. 1:7(6) ack 1001 "banner"
+0      expect  state FIN-WAIT-1
""")

test_the_syn_ack_is_repeated_until_the_guest_counts_as_gone = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+1      engine  S. 0:0(0) ack 1001 <mss 1460>
+2      engine  S. 0:0(0) ack 1001 <mss 1460>
+4      engine  S. 0:0(0) ack 1001 <mss 1460>
+8      engine  S. 0:0(0) ack 1001 <mss 1460>
+16     engine  S. 0:0(0) ack 1001 <mss 1460>
+32     engine  S. 0:0(0) ack 1001 <mss 1460>
+60     engine  S. 0:0(0) ack 1001 <mss 1460>
+60     engine  R. 1:1(0) ack 1001                     # more than three minutes: RFC 9293 MUST-23
+0      expect  state CLOSED
+0      expect  signals GAVE_UP ENDED
""")

test_after_a_lost_syn_ack_there_is_one_segment_and_three_seconds = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+1      engine  S. 0:0(0) ack 1001 <mss 1460>
+0.001  guest   . 1001 ack 1
+0      write   5000
+0      engine  . 1:1461(1460) ack 1001
+2.999  nothing
+0.001  engine  P. 1:1461(1460) ack 1001
""")

test_a_repeated_syn_is_answered_again_ten_times_a_second_at_most = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0.5    guest   S 1000:1000(0) win 65535 <mss 1460>
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0.05   guest   S 1000:1000(0) win 65535 <mss 1460>
+0      nothing
+0.05   guest   S 1000:1000(0) win 65535 <mss 1460>
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0.001  guest   . 1001 ack 1
+0      expect  state ESTABLISHED
""")

test_a_refused_syn_gets_a_reset = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0.1    abort
+0      engine  R. @0 ack 1001
+0      expect  state CLOSED
+0      expect  signals ENDED
""")

test_a_guest_that_resets_while_the_dial_is_under_way = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      guest   R 5000                                 # not its number: somebody guesses
+0      expect  state LISTEN
+0      guest   . 1001 ack 1                           # nothing was sent that could be acknowledged
+0      expect  state LISTEN
+0      guest   R 1001
+0      expect  state CLOSED
+0      expect  signals PEER_RESET ENDED
""")

test_a_reset_in_syn_received = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   R 900000                               # outside the window: nothing
+0      nothing
+0      guest   R 1010                                 # inside: a challenge (RFC 5961 section 3.2)
+0      engine  . 1:1(0) ack 1001
+0      expect  state SYN-RECEIVED
+0      guest   R 1001
+0      expect  state CLOSED
+0      expect  signals PEER_RESET ENDED
""")

test_an_acknowledgement_of_something_else_in_syn_received = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   . 1001 ack 500
+0      engine  R 500:500(0)
+0      expect  state SYN-RECEIVED
+0      guest   . 1001 ack 1
+0      expect  state ESTABLISHED
""")

# -- towards the guest ------------------------------------------------------------------------------------------------

ACTIVE = """
+0      connect
+0      engine  S 0:0(0) win 65535 <mss 1460,sackOK,TS val 0 ecr 0,nop,wscale 7>
+0      expect  state SYN-SENT
"""

test_open_towards_the_guest = transcript(
    ACTIVE
    + """
+0.010  guest   S. 1000:1000(0) ack 1 win 64240 <mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>
+0      engine  . 1:1(0) ack 1001 win 512 <TS val 10 ecr 100>
+0      expect  state ESTABLISHED
+0      expect  signals OPENED
+0      write   "hello"
+0      engine  P. 1:6(5) ack 1001 "hello"
"""
)

test_open_towards_a_guest_that_knows_no_options = transcript(
    ACTIVE
    + """
+0.010  guest   S. 1000:1000(0) ack 1 win 8192
+0      engine  . 1:1(0) ack 1001 win 65535
+0      guest   . 1001:1101(100) ack 1
+0.04   engine  . 1:1(0) ack 1101
"""
)

test_data_and_fin_in_the_syn_ack = transcript(
    ACTIVE
    + """
+0.010  guest   SF. 1000:1005(5) ack 1 win 64240 <mss 1460> "hello"
+0      engine  . 1:1(0) ack 1007
+0      expect  state CLOSE-WAIT
+0      expect  received "hello"
"""
)

test_a_guest_that_refuses = transcript(
    ACTIVE
    + """
+0      guest   R 0                                    # acknowledges nothing: anybody could have sent it
+0      expect  state SYN-SENT
+0      guest   R. 0 ack 77                            # nor that
+0      expect  state SYN-SENT
+0      guest   R. 0 ack 1
+0      expect  state CLOSED
+0      expect  signals PEER_RESET ENDED
"""
)

test_an_old_syn_ack_is_reset = transcript(
    ACTIVE
    + """
+0      guest   S. 1000:1000(0) ack 4711 win 64240 <mss 1460>
+0      engine  R 4711:4711(0)
+0      expect  state SYN-SENT
+0      guest   . 1000 ack 1                           # acknowledges, but is no SYN
+0      expect  state SYN-SENT
"""
)

test_the_syn_is_repeated_until_the_guest_counts_as_gone = transcript(
    ACTIVE
    + """
+1      engine  S 0:0(0) <mss 1460,sackOK,wscale 7>
+2      engine  S 0:0(0) <mss 1460,sackOK,wscale 7>
+4      engine  S 0:0(0) <mss 1460,sackOK,wscale 7>
+8      engine  S 0:0(0) <mss 1460,sackOK,wscale 7>
+16     engine  S 0:0(0) <mss 1460,sackOK,wscale 7>
+32     engine  S 0:0(0) <mss 1460,sackOK,wscale 7>
+60     engine  S 0:0(0) <mss 1460,sackOK,wscale 7>
+59.9   expect  state SYN-SENT
+0.1    nothing
+0      expect  state CLOSED
+0      expect  signals GAVE_UP ENDED
"""
)

test_an_open_that_is_called_off_says_nothing = transcript(
    ACTIVE
    + """
+0      abort
+0      expect  state CLOSED
+5      nothing
"""
)

test_both_sides_open_at_once = transcript(
    ACTIVE
    + """
+0.010  guest   S 1000:1000(0) win 64240 <mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460,sackOK,TS val 10 ecr 100,nop,wscale 7>
+0      expect  state SYN-RECEIVED
+0.005  guest   S. 1000:1000(0) ack 1 win 64240 <mss 1460,sackOK,TS val 105 ecr 10,nop,wscale 7>
+0      expect  state ESTABLISHED
+0      write   "hello"
+0      engine  P. 1:6(5) ack 1001 "hello"
"""
)

test_a_connection_nobody_opened_does_nothing = transcript("""
+0      write   "lost"
+0      finish
+0      abort
+0      expect  state CLOSED
+0      guest   . 1 ack 1
+1      nothing
""")
