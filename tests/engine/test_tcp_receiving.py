"""Transcripts of what the guest sends: taking its bytes, acknowledging them, and the window that is offered."""

from __future__ import annotations

from .transcript import OPEN, OPEN_SACK, OPEN_TS, transcript

# -- when the guest hears that its bytes came -------------------------------------------------------------------------

test_a_single_segment_is_acknowledged_after_40_ms = transcript(
    OPEN
    + """
+0      guest   P. 1001:1101(100) ack 1
+0.039  nothing
+0.001  engine  . 1:1(0) ack 1101
+0      expect  received 100
+0      expect  deadline none
"""
)

test_every_second_full_segment_is_acknowledged_at_once = transcript(
    OPEN
    + """
+0      guest   . 1001:2461(1460) ack 1
+0      nothing
+0.001  guest   . 2461:3921(1460) ack 1
+0      engine  . 1:1(0) ack 3921
+0.001  guest   . 3921:5381(1460) ack 1
+0      nothing
+0.040  engine  . 1:1(0) ack 5381
"""
)

test_a_full_segment_is_smaller_with_time_stamps = transcript(
    OPEN_TS
    + """
+0      guest   . 1001:2449(1448) ack 1
+0.001  guest   . 2449:3897(1448) ack 1
+0      engine  . 1:1(0) ack 3897 <TS val 2 ecr 101>
"""
)

test_a_full_segment_is_smaller_for_a_guest_with_a_small_mtu = transcript("""
+0      guest   S 1000:1000(0) win 65535 <mss 1360>
+0      accept
+0      engine  S. 0:0(0) ack 1001 <mss 1460>
+0      guest   . 1001 ack 1
+0      guest   . 1001:2361(1360) ack 1
+0.001  guest   . 2361:3721(1360) ack 1
+0      engine  . 1:1(0) ack 3721
""")

test_one_acknowledgement_for_a_whole_batch = transcript(
    OPEN
    + """
+0      guest+  . 1001:2461(1460) ack 1
+0      guest+  . 2461:3921(1460) ack 1
+0      guest+  . 3921:5381(1460) ack 1
+0      guest   P. 5381:5481(100) ack 1
+0      engine  . 1:1(0) ack 5481
+0      nothing
"""
)

test_an_acknowledgement_rides_on_data = transcript(
    OPEN
    + """
+0      guest   P. 1001:1101(100) ack 1
+0.010  write   "reply"
+0      engine  P. 1:6(5) ack 1101 "reply"
+0.1    guest   . 1101 ack 6
+1      nothing
"""
)

# -- gaps -------------------------------------------------------------------------------------------------------------

test_each_segment_out_of_order_is_answered_at_once = transcript(
    OPEN
    + """
+0      guest+  . 2461:3921(1460) ack 1
+0      guest+  . 3921:5381(1460) ack 1
+0      guest   . 5381:6841(1460) ack 1
+0      engine  . 1:1(0) ack 1001
+0      engine  . 1:1(0) ack 1001
+0      engine  . 1:1(0) ack 1001
+0      expect  received 0
+0.01   guest   . 1001:2461(1460) ack 1
+0      engine  . 1:1(0) ack 6841
+0      expect  received 5840
"""
)

test_sack_blocks_name_the_newest_first = transcript(
    OPEN_SACK
    + """
+0      guest   . 2000:2100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 2000:2100>
+0      guest   . 3000:3100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 3000:3100 2000:2100>
+0      guest   . 4000:4100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 4000:4100 3000:3100 2000:2100>
+0      guest   . 5000:5100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 5000:5100 4000:4100 3000:3100 2000:2100>
+0      guest   . 6000:6100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 6000:6100 5000:5100 4000:4100 3000:3100>
+0      guest   . 3100:3200(100) ack 1                 # grows an old one
+0      engine  . 1:1(0) ack 1001 <sack 3000:3200 6000:6100 5000:5100 4000:4100>
+0      guest   . 1001:2000(999) ack 1                 # fills the first gap
+0      engine  . 1:1(0) ack 2100 <sack 3000:3200 6000:6100 5000:5100 4000:4100>
+0      guest   . 2100:6000(3900) ack 1
+0      engine  . 1:1(0) ack 6100
+0      expect  received 5099
"""
)

test_three_sack_blocks_fit_beside_time_stamps = transcript(
    OPEN_TS
    + """
+0      guest   . 2000:2100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <TS val 1 ecr 101,sack 2000:2100>
+0      guest   . 3000:3100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 3000:3100 2000:2100>
+0      guest   . 4000:4100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 4000:4100 3000:3100 2000:2100>
+0      guest   . 5000:5100(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 5000:5100 4000:4100 3000:3100>
"""
)

test_without_sack_permitted_there_are_no_blocks = transcript(
    OPEN
    + """
+0      guest   . 2000:2100(100) ack 1
+0      engine  . 1:1(0) ack 1001
"""
)

test_what_comes_twice_is_reported_below_the_acknowledgement = transcript(
    OPEN_SACK
    + """
+0      guest+  . 1001:2461(1460) ack 1
+0      guest   . 2461:3921(1460) ack 1
+0      engine  . 1:1(0) ack 3921
+0.3    guest   . 1001:2461(1460) ack 1
+0      engine  . 1:1(0) ack 3921 <sack 1001:2461>
+0      guest   . 3921:4021(100) ack 1
+0.04   engine  . 1:1(0) ack 4021                      # once is enough
"""
)

test_what_comes_twice_is_reported_beyond_a_gap = transcript(
    OPEN_SACK
    + """
+0      guest   . 3000:3500(500) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 3000:3500>
+0.3    guest   . 3100:3200(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 3100:3200 3000:3500>
"""
)

test_blocks_are_told_beside_data_too = transcript(
    OPEN_SACK
    + """
+0      guest   . 3000:3500(500) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 3000:3500>
+0      guest+  . 1001:1101(100) ack 1
+0      write   "reply"
+0      engine  P. 1:6(5) ack 1101 "reply"
+0      engine  . 6:6(0) ack 1101 <sack 3000:3500>
"""
)

test_bytes_that_overlap_the_first_accepted_win = transcript(
    OPEN_SACK
    + """
+0      guest   . 1004:1007(3) ack 1 "DEF"
+0      engine  . 1:1(0) ack 1001 <sack 1004:1007>
+0      guest   . 1001:1010(9) ack 1 "abcdefghi"
+0      engine  . 1:1(0) ack 1010
+0      expect  received "abcDEFghi"
+0      guest   . 1008:1013(5) ack 1 "XYZxy"
+0.04   engine  . 1:1(0) ack 1013
+0      expect  received "abcDEFghiZxy"
"""
)

test_an_old_segment_with_new_bytes_at_its_end = transcript(
    OPEN
    + """
+0      guest   . 1001:1101(100) ack 1
+0.04   engine  . 1:1(0) ack 1101
+0      guest   . 1001:1201(200) ack 1
+0.04   engine  . 1:1(0) ack 1201
+0      expect  received 200
"""
)

# -- FIN --------------------------------------------------------------------------------------------------------------

test_a_fin_with_data = transcript(
    OPEN
    + """
+0      guest   FP. 1001:1101(100) ack 1
+0      engine  . 1:1(0) ack 1102
+0      expect  state CLOSE-WAIT
+0      expect  signals OPENED PEER_FINISHED
+0      expect  received 100
"""
)

test_a_fin_that_overtakes_is_kept = transcript(
    OPEN_SACK
    + """
+0      guest   F. 1101:1201(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 1101:1202>
+0      expect  state ESTABLISHED
+0      guest   . 1001:1101(100) ack 1
+0      engine  . 1:1(0) ack 1202
+0      expect  state CLOSE-WAIT
+0      expect  received 200
"""
)

test_a_bare_fin_that_overtakes_is_kept = transcript(
    OPEN
    + """
+0      guest   F. 1101 ack 1
+0      engine  . 1:1(0) ack 1001
+0      guest   . 1001:1101(100) ack 1
+0      engine  . 1:1(0) ack 1102
+0      expect  state CLOSE-WAIT
"""
)

test_bytes_beyond_a_fin_do_not_exist = transcript(
    OPEN_SACK
    + """
+0      guest   F. 1101 ack 1
+0      engine  . 1:1(0) ack 1001
+0      guest   . 1001:1301(300) ack 1
+0      engine  . 1:1(0) ack 1102
+0      expect  received 100
+0      guest   . 1102:1302(200) ack 1
+0      engine  . 1:1(0) ack 1102
+0      expect  received 100
"""
)

test_a_fin_below_bytes_that_came_is_no_fin = transcript(
    OPEN_SACK
    + """
+0      guest   . 1201:1301(100) ack 1
+0      engine  . 1:1(0) ack 1001 <sack 1201:1301>
+0      guest   F. 1101 ack 1
+0      engine  . 1:1(0) ack 1001 <sack 1201:1301>
+0      guest   . 1001:1201(200) ack 1
+0      engine  . 1:1(0) ack 1301
+0      expect  state ESTABLISHED
"""
)

test_a_fin_that_is_added_to_a_repeated_segment = transcript(
    OPEN_SACK
    + """
+0      guest   . 1001:1101(100) ack 1
+0.04   engine  . 1:1(0) ack 1101
+0      guest   FP. 1001:1101(100) ack 1
+0      engine  . 1:1(0) ack 1102 <sack 1001:1101>
+0      expect  state CLOSE-WAIT
+0      expect  received 100
"""
)

test_a_repeated_fin_is_acknowledged_again = transcript(
    OPEN
    + """
+0      guest   F. 1001 ack 1
+0      engine  . 1:1(0) ack 1002
+0.2    guest   F. 1001 ack 1
+0      engine  . 1:1(0) ack 1002
+0      expect  state CLOSE-WAIT
"""
)

# -- what is not text -------------------------------------------------------------------------------------------------

test_k5_urgent_data_is_data = transcript(
    OPEN
    + """
+0      guest   PU. 1001:1006(5) ack 1 urg 1 "!attn"
+0      guest   U. 1006:1011(5) ack 1 urg 60000 "beyon"
+0      guest   U. 1011:1016(5) ack 1 urg 0 "dzero"
+0      guest   PU. 1016 ack 1 urg 5
+0.04   engine  . 1:1(0) ack 1016
+0      expect  received "!attnbeyondzero"
"""
)

test_f9_options_that_cannot_be_read_change_nothing = transcript(
    OPEN_SACK
    + """
+0      guest   . 1001:1101(100) ack 1 <raw 0500>      # a length that cannot be
+0      guest   . 1101:1201(100) ack 1 <raw 08ff0101>  # one beyond the end
+0      guest   . 1201:1301(100) ack 1 <raw fd04f989>  # a kind nobody knows
+0      guest   . 1301:1401(100) ack 1 <raw 03030e02>  # window scale outside a SYN
+0.04   engine  . 1:1(0) ack 1401
+0      expect  received 400
"""
)
