"""Transcripts of what is lost on its way to the guest, and how it is repaired without SACK and with it."""

from __future__ import annotations

from .transcript import OPEN, OPEN_SACK, OPEN_SLOW, burst, transcript

# -- losses, without SACK ---------------------------------------------------------------------------------------------

test_three_duplicates_repeat_the_first_segment = transcript(
    OPEN
    + "+0 write 14600\n"
    + burst(1, 9)
    + """
+0      engine  P. 13141:14601(1460) ack 1001
+0.01   guest   . 1001 ack 1461
+0      guest   . 1001 ack 1461
+0      guest   . 1001 ack 1461
+0      nothing
+0      guest   . 1001 ack 1461
+0      engine  P. 1461:2921(1460) ack 1001
+0      guest   . 1001 ack 1461
+0      nothing
+0.01   guest   . 1001 ack 14601
+0      expect  deadline none
"""
)

test_limited_transmit_lets_a_new_segment_out_for_each_of_two_duplicates = transcript(
    OPEN
    + "+0 write 43800\n"
    + burst(1, 10)
    + """
+0.01   guest   . 1001 ack 1
+0      engine  . 14601:16061(1460) ack 1001
+0      guest   . 1001 ack 1
+0      engine  . 16061:17521(1460) ack 1001
+0      guest   . 1001 ack 1
+0      engine  P. 1:1461(1460) ack 1001
"""
)

test_newreno_repairs_one_gap_for_each_partial_acknowledgement = transcript(
    OPEN
    + "+0 write 43800\n"
    + burst(1, 10)
    + """
# The first, the fourth and the seventh segment are lost.
+0.01   guest   . 1001 ack 1
+0      engine  . 14601:16061(1460) ack 1001
+0      guest   . 1001 ack 1
+0      engine  . 16061:17521(1460) ack 1001
+0      guest   . 1001 ack 1
+0      engine  P. 1:1461(1460) ack 1001
+0      guest+  . 1001 ack 1
+0      guest+  . 1001 ack 1
+0      guest   . 1001 ack 1
+0      nothing                                        # six segments may be on their way: twelve less six duplicates
+0      guest   . 1001 ack 1
+0      engine  . 17521:18981(1460) ack 1001
+0.01   guest   . 1001 ack 4381
+0      engine  P. 4381:5841(1460) ack 1001
+0.01   guest   . 1001 ack 8761
+0      engine  P. 8761:10221(1460) ack 1001
+0      engine  . 18981:20441(1460) ack 1001
"""
)

test_duplicates_after_a_recovery_do_not_start_another = transcript(
    OPEN
    + "+0 write 14600\n"
    + burst(1, 9)
    + """
+0      engine  P. 13141:14601(1460) ack 1001
+0.201  engine  P. 1:1461(1460) ack 1001
+0.01   guest   . 1001 ack 14601                       # only the acknowledgement was late
+0      guest   . 1001 ack 14601
+0      guest   . 1001 ack 14601
+0      guest   . 1001 ack 14601
+1      nothing
"""
)

test_duplicates_of_what_was_just_repaired_are_not_believed = transcript(
    OPEN
    + "+0 write 14600\n"
    + burst(1, 9)
    + """
+0      engine  P. 13141:14601(1460) ack 1001
+0.201  engine  P. 1:1461(1460) ack 1001
+0.01   guest   . 1001 ack 14601
+0      write   1460
+0      engine  P. 14601:16061(1460) ack 1001
# RFC 6582 section 3.2: they may be answers to what was repeated in vain.
+0.01   guest+  . 1001 ack 14601
+0      guest+  . 1001 ack 14601
+0      guest   . 1001 ack 14601
+0      nothing
"""
)

test_the_timer_starts_over_when_the_first_segment_is_repeated = transcript(
    OPEN
    + "+0 write 5840\n"
    + burst(1, 3)
    + """
+0      engine  P. 4381:5841(1460) ack 1001
+0.190  guest+  . 1001 ack 1
+0      guest+  . 1001 ack 1
+0      guest   . 1001 ack 1
+0      engine  P. 1:1461(1460) ack 1001
+0.200  nothing
+0.001  engine  P. 1:1461(1460) ack 1001
"""
)

test_a_window_update_is_no_duplicate = transcript(
    OPEN
    + "+0 write 14600\n"
    + burst(1, 9)
    + """
+0      engine  P. 13141:14601(1460) ack 1001
+0.01   guest   . 1001 ack 1 win 60000
+0      guest   . 1001 ack 1 win 59000
+0      guest   . 1001 ack 1 win 58000
+0      guest   . 1001 ack 1 win 57000
+0      nothing
"""
)

# -- losses, with SACK ------------------------------------------------------------------------------------------------

test_more_than_two_segments_beyond_a_gap_make_it_lost = transcript(
    OPEN_SACK
    + "+0 write 14600\n"
    + burst(1, 9)
    + """
+0      engine  P. 13141:14601(1460) ack 1001
+0.01   guest+  . 1001 ack 1 <sack 1461:2921>
+0      guest+  . 1001 ack 1 <sack 1461:4381>
+0      guest   . 1001 ack 1 <sack 1461:5841>
+0      engine  P. 1:1461(1460) ack 1001
+0.01   guest   . 1001 ack 14601
+0      expect  deadline none
"""
)

test_every_gap_below_what_was_overtaken_is_repaired_in_one_go = transcript(
    OPEN_SACK
    + "+0 write 29200\n"
    + burst(1, 10)
    + """
# The first, the fourth and the seventh segment are lost; one acknowledgement tells of it.
+0.01   guest   . 1001 ack 1 <sack 10221:14601 5841:8761 1461:4381>
# Half of ten segments may be on their way, none is: all three again, and two new ones.
+0      engine  P. 1:1461(1460) ack 1001
+0      engine  P. 4381:5841(1460) ack 1001
+0      engine  P. 8761:10221(1460) ack 1001
+0      engine  . 14601:16061(1460) ack 1001
+0      engine  . 16061:17521(1460) ack 1001
+0      nothing
+0.01   guest   . 1001 ack 17521
+0      engine  . 17521:18981(1460) ack 1001
+0      engine  . 18981:20441(1460) ack 1001
+0      engine  . 20441:21901(1460) ack 1001
+0      engine  . 21901:23361(1460) ack 1001
+0      engine  . 23361:24821(1460) ack 1001
"""
)

test_congestion_avoidance_adds_a_segment_for_each_window = transcript(
    OPEN_SACK
    + "+0 write 73000\n"
    + burst(1, 10)
    + "+0.01 guest . 1001 ack 1 <sack 1461:14601>\n+0 engine P. 1:1461(1460) ack 1001\n"
    + burst(14601, 4)
    + "+0.01 guest . 1001 ack 20441\n"  # repaired; half of ten segments may be on their way
    + burst(20441, 5)
    + "+0.01 guest . 1001 ack 27741\n"  # one acknowledgement for all of them
    + burst(27741, 6)
    + "+0.01 guest . 1001 ack 30661\n"  # two of six: a third of a segment
    + burst(36501, 2)
    + "+0.01 guest . 1001 ack 39421\n"  # six: that makes 7.3
    + burst(39421, 7)
    + "+0 nothing\n"
)

test_three_small_segments_beyond_a_gap_are_enough = transcript(
    OPEN_SACK
    + """
+0      write   "a"
+0      engine  P. 1:2(1) ack 1001
+0      write   "b"
+0      engine  P. 2:3(1) ack 1001
+0      write   "c"
+0      engine  P. 3:4(1) ack 1001
+0      write   "d"
+0      engine  P. 4:5(1) ack 1001
+0.01   guest+  . 1001 ack 1 <sack 2:3>
+0      guest+  . 1001 ack 1 <sack 2:4>
+0      guest   . 1001 ack 1 <sack 2:5>
+0      engine  P. 1:2(1) ack 1001
"""
)

test_news_of_a_gap_counts_beside_the_guests_own_data = transcript(
    OPEN_SACK
    + "+0 write 14600\n"
    + burst(1, 9)
    + """
+0      engine  P. 13141:14601(1460) ack 1001
+0.01   guest   . 1001:1101(100) ack 1 <sack 1461:14601>
+0      engine  P. 1:1461(1460) ack 1101
"""
)

test_a_single_overtaken_segment_is_given_a_quarter_of_a_round_trip = transcript(
    OPEN_SLOW
    + """
+0      write   2896
+0      engine  . 1:1449(1448) ack 1001
+0      engine  P. 1449:2897(1448) ack 1001
+0.020  guest   . 1001 ack 1 <sack 1449:2897>
+0.0049 nothing
+0.0001 engine  P. 1:1449(1448) ack 1001
+0.020  guest   . 1001 ack 2897
+0      expect  deadline none
"""
)

test_a_segment_that_was_only_late_is_not_repeated = transcript(
    OPEN_SLOW
    + """
+0      write   2896
+0      engine  . 1:1449(1448) ack 1001
+0      engine  P. 1449:2897(1448) ack 1001
+0.020  guest   . 1001 ack 1 <sack 1449:2897>
+0.003  guest   . 1001 ack 2897
+1      nothing
"""
)

test_a_repetition_that_is_lost_too_is_repeated_without_the_timer = transcript(
    OPEN_SACK
    + "+0 write 29200\n"
    + burst(1, 10)
    + """
+0.01   guest   . 1001 ack 1 <sack 1461:14601>
+0      engine  P. 1:1461(1460) ack 1001
+0      engine  . 14601:16061(1460) ack 1001
+0      engine  . 16061:17521(1460) ack 1001
+0      engine  . 17521:18981(1460) ack 1001
+0      engine  . 18981:20441(1460) ack 1001
# What was sent after the repetition has arrived.
+0.01   guest   . 1001 ack 1 <sack 1461:16061>
+0      engine  P. 1:1461(1460) ack 1001
+0      engine  . 20441:21901(1460) ack 1001
+0.01   guest   . 1001 ack 20441
+0      engine  . 21901:23361(1460) ack 1001
+0      engine  . 23361:24821(1460) ack 1001
+0      engine  . 24821:26281(1460) ack 1001
+0      engine  . 26281:27741(1460) ack 1001
"""
)

test_the_end_of_what_was_sent_is_probed_after_two_round_trips = transcript(
    OPEN_SLOW
    + """
+0      write   4344
+0      engine  . 1:1449(1448) ack 1001
+0      engine  . 1449:2897(1448) ack 1001
+0      engine  P. 2897:4345(1448) ack 1001
+0.020  guest   . 1001 ack 1449                        # the other two are lost
+0.040  engine  P. 2897:4345(1448) ack 1001
+0.020  guest   . 1001 ack 1449 <sack 2897:4345>
+0.005  engine  P. 1449:2897(1448) ack 1001
+0.020  guest   . 1001 ack 4345
+0      expect  deadline none
"""
)

test_a_probe_of_the_end_is_new_data_where_there_is_some = transcript(
    OPEN_SLOW
    + "+0 write 20000\n"
    + burst(1, 10, 1448)
    + """
+0.040  engine  . 14481:15929(1448) ack 1001
+0.020  guest   . 1001 ack 15929
"""
    + burst(15929, 2, 1448)
    + "+0 engine P. 18825:20001(1176) ack 1001\n"
)

test_only_one_probe_then_the_timer = transcript(
    OPEN_SLOW
    + """
+0      write   2896
+0      engine  . 1:1449(1448) ack 1001
+0      engine  P. 1449:2897(1448) ack 1001
+0.040  engine  P. 1449:2897(1448) ack 1001
+0.220  engine  P. 1:1449(1448) ack 1001
"""
)

test_a_guest_that_throws_away_what_it_acknowledged = transcript(
    OPEN_SACK
    + "+0 write 5840\n"
    + burst(1, 3)
    + """
+0      engine  P. 4381:5841(1460) ack 1001
+0.01   guest   . 1001 ack 1 <sack 1:5841>             # nothing is missing, it says, and nothing is acknowledged
+0.040  engine  P. 4381:5841(1460) ack 1001            # the end is probed, in vain
+0.220  engine  P. 1:1461(1460) ack 1001
+0.01   guest   . 1001 ack 1461
+0      engine  P. 1461:2921(1460) ack 1001
+0      engine  P. 2921:4381(1460) ack 1001
+0.01   guest   . 1001 ack 4381
+0      engine  P. 4381:5841(1460) ack 1001
"""
)

test_k8_blocks_that_make_no_sense_change_nothing = transcript(
    OPEN_SACK
    + """
+0      write   2920
+0      engine  . 1:1461(1460) ack 1001
+0      engine  P. 1461:2921(1460) ack 1001
+0.01   guest   . 1001 ack 1 <sack 1461:900000>        # never sent
+0      guest   . 1001 ack 1 <sack 2000:2000>          # empty
+0      guest   . 1001 ack 1 <sack 2000:1500>          # backwards
+0      guest   . 1001 ack 1 <sack 3000000000:3000000100>
+0      nothing
+0      guest   . 1001 ack 2921
+0      expect  deadline none
"""
)

test_k8_blocks_without_sack_permitted_change_nothing = transcript(
    OPEN
    + "+0 write 5840\n"
    + burst(1, 3)
    + """
+0      engine  P. 4381:5841(1460) ack 1001
+0.01   guest   . 1001 ack 1 <sack 1461:5841>
+0.1    nothing
+0.091  engine  P. 1:1461(1460) ack 1001
"""
)
