"""Replays: of our own captures byte for byte, of others by meaning, twice the same, in batches of any size."""

from __future__ import annotations

import struct
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from guest_iface.pcapng import section_header
from netstack import NetworkSpec, recorded_settings
from netstack.config import network_settings
from netstack.debug.capture_reader import INBOUND, CaptureError, CaptureReader
from netstack.debug.parties import find, parse_guest
from netstack.engine.events import DnsEvent, FlowClosed, FlowOpened, FlowRefused
from netstack.network_spec import NetworkSpec as Spec
from netstack.testing import replay_capture

ROOT = Path(__file__).parents[2]
PCAPS = ROOT / "fixtures" / "pcaps"
ALL = sorted(path for path in PCAPS.iterdir() if path.suffix in (".pcap", ".pcapng"))
OTHERS = [path for path in ALL if path.name.startswith(("kernel-", "format-"))]


def changed(source: Path, target: Path, *, keep: slice = slice(None), start: int = 0) -> Path:
    """The frames of a capture as a plain pcap, which says nothing of settings."""
    with target.open("wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65_535, 1))
        for frame in list(CaptureReader(source))[keep]:
            time = frame.time + start
            out.write(struct.pack("<IIII", time // 10**9, time % 10**9, len(frame.data), frame.length) + frame.data)
    return target


def test_there_are_captures_of_all_kinds():
    assert len(ALL) >= 40
    assert len(OTHERS) >= 8
    assert sum(path.stat().st_size for path in ALL) < 3 << 20
    listed = (PCAPS / "README.md").read_text()
    assert all(f"`{path.name}`" in listed for path in ALL)


@pytest.mark.parametrize("path", [path for path in ALL if path not in OTHERS], ids=lambda path: path.stem)
def test_our_own_captures_replay_byte_for_byte(path: Path):
    replayed = replay_capture(path)
    assert replayed.exact
    assert replayed.differences == ()
    frames = [each.data for each in CaptureReader(path) if each.direction != INBOUND]
    assert sorted(replayed.frames) == sorted(frames)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_captures_of_other_stacks_come_to_the_same_streams(path: Path):
    replayed = replay_capture(path)
    assert not replayed.exact
    assert replayed.differences == ()
    assert replayed.frames or "midway" in path.name


@pytest.mark.parametrize("name", ["tcp-loss-both-ways", "tcp-loss-to-guest", "kernel-loss", "vm-boot"])
def test_twice_is_the_same(name: str):
    path = PCAPS / f"{name}.pcapng"
    one, other = replay_capture(path), replay_capture(path)
    assert one.lines == other.lines
    assert one.frames == other.frames


def test_a_lossy_session_repeats_its_retransmissions():
    """What a failing session did, its capture does again: the segments that were sent twice are the same ones."""
    path = PCAPS / "tcp-loss-to-guest.pcapng"
    replayed = replay_capture(path)
    recorded = [each.data for each in CaptureReader(path) if each.direction != INBOUND]
    segments = [frame[38:42] for frame in replayed.frames if frame[23:24] == b"\x06" and len(frame) > 100]
    assert len(segments) - len(set(segments)) >= 5, "the capture is one with losses"
    assert [frame for frame in replayed.frames if len(frame) > 100] == [frame for frame in recorded if len(frame) > 100]


@pytest.mark.parametrize("name", ["tcp-upload", "tcp-reordering", "tcp-half-close-guest", "tls-curl", "tcp-parallel"])
@hypothesis_settings(max_examples=4)
@given(batches=st.sampled_from([2, 3, 10, 1_000_000]))
def test_one_frame_a_batch_or_all_in_one_gives_the_same_streams(name: str, batches: int):
    one = replay_capture(PCAPS / f"{name}.pcapng", batches=1)
    other = replay_capture(PCAPS / f"{name}.pcapng", batches=batches)
    assert one.streams == other.streams
    assert sum(map(len, one.streams.values())) > 0
    assert [event.received for event in one.told(FlowClosed)] == [event.received for event in other.told(FlowClosed)]


@pytest.mark.parametrize("name", ["tcp-download", "tcp-echo", "dns-types", "udp-echo", "ping-out", "tcp-loss-to-guest"])
def test_our_capture_without_its_settings_is_replayed_by_meaning(tmp_path: Path, name: str):
    replayed = replay_capture(changed(PCAPS / f"{name}.pcapng", tmp_path / "a.pcap"))
    assert not replayed.exact
    assert replayed.differences == ()


def test_a_capture_behind_an_impaired_wire_is_replayed_by_meaning(tmp_path: Path):
    """Where the gateway may have had other frames than the file shows, nothing is held against it byte by byte."""
    kept = PCAPS / "tcp-loss-to-guest.pcapng"
    with closing(CaptureReader(kept)) as reader:
        settings = recorded_settings.read(reader.comment)
    assert settings is not None
    assert settings.policy is not None
    line = recorded_settings.recorder(settings.network, settings.policy, faithful=False)(settings.clock)
    data = kept.read_bytes()
    end = int.from_bytes(data[4:8], "little")
    (tmp_path / "a.pcapng").write_bytes(section_header("a test", line) + data[end:])
    replayed = replay_capture(tmp_path / "a.pcapng")
    assert not replayed.exact
    assert replayed.differences == ()
    assert [event.received for event in replayed.told(FlowClosed)] == [
        event.received for event in replay_capture(kept).told(FlowClosed)
    ]


def test_numbers_are_mapped_where_the_recorded_ones_are_not_in_sight(tmp_path: Path):
    """The SYN-ACK lies behind what is looked ahead: our sequence numbers are others, the streams the same."""
    from netstack.debug.replay import Replay

    path = changed(PCAPS / "tcp-echo.pcapng", tmp_path / "a.pcap")
    reader = CaptureReader(path)
    with Replay(reader, lookahead=8) as near, Replay.open(path) as far:
        near.streams, far.streams = {}, {}
        close = [frame for record in near for frame in record.answers]
        usual = [frame for record in far for frame in record.answers]
    assert near.streams == far.streams != {}
    assert near.summary.differences == far.summary.differences == 0
    assert len(close) == len(usual)


def test_what_a_policy_would_have_done():
    """A capture of a kernel's, under a list: names refused that are not on it."""
    refused = replay_capture(PCAPS / "kernel-tls.pcapng", spec=NetworkSpec.enabled(["example.org"]))
    (event,) = refused.told(FlowRefused)
    assert (event.verdict.reason, event.verdict.name) == ("name-not-allowed", "pypi.org")
    assert refused.differences, "and it is not what was recorded"
    allowed = replay_capture(PCAPS / "kernel-tls.pcapng", spec=NetworkSpec.enabled(["pypi.org"]))
    (opened,) = allowed.told(FlowOpened)
    assert opened.verdict.name == "pypi.org"
    assert allowed.differences == ()


def test_a_capture_of_ours_under_another_policy():
    replayed = replay_capture(PCAPS / "dns-a.pcapng", spec=NetworkSpec.enabled(["pypi.org"]))
    (event,) = replayed.told(DnsEvent)
    assert event.source == "policy"
    assert not replayed.exact
    assert [difference.what for difference in replayed.differences] == ["the dns answer says something else"]


def test_a_changed_answer_is_a_difference(tmp_path: Path):
    """One byte of one recorded frame: it is named, with the field that differs."""
    path = PCAPS / "ping-gateway.pcapng"
    data = bytearray(path.read_bytes())
    reply = [each for each in CaptureReader(path) if each.direction != INBOUND and each.data[34:35] == b"\0"][-1]
    data[data.rindex(reply.data) + 42 + 20] ^= 1
    (tmp_path / "a.pcapng").write_bytes(data)
    (difference,) = replay_capture(tmp_path / "a.pcapng").differences
    assert (difference.number, difference.what) == (reply.number, "payload from byte 20")
    assert difference.ours == reply.data
    assert difference.recorded != reply.data


def test_what_was_open_before_is_left_out(tmp_path: Path):
    replayed = replay_capture(changed(PCAPS / "kernel-http.pcapng", tmp_path / "a.pcap", keep=slice(12, 60)))
    assert replayed.summary.skipped["begins before the capture"] > 3
    assert any(" - tcp " in line for line in replayed.lines)
    assert replayed.differences == ()


def test_a_file_cut_off_is_played_up_to_there(tmp_path: Path):
    from netstack.debug.replay import Replay

    data = (PCAPS / "tcp-echo.pcapng").read_bytes()
    (tmp_path / "a.pcapng").write_bytes(data[: len(data) * 3 // 4])
    with Replay.open(tmp_path / "a.pcapng") as replay:
        records = iter(replay)
        for _ in range(5):
            assert next(records).frame
        with pytest.raises(CaptureError, match=r"after frame \d+: the file is cut off"):
            list(records)


def test_the_guest_can_be_named(tmp_path: Path):
    path = PCAPS / "kernel-on-link.pcap"
    named = replay_capture(path, guest="10.9.0.2")
    assert named.lines == replay_capture(path).lines
    with pytest.raises(CaptureError, match=r"nothing comes from 10\.9\.0\.9"):
        replay_capture(path, guest="10.9.0.9")
    with pytest.raises(ValueError, match="nobody"):
        parse_guest("nobody")
    assert parse_guest("02:00:00:00:00:02") == bytes.fromhex("020000000002")


def test_nobody_in_it_can_be_the_guest(tmp_path: Path):
    frames = list(CaptureReader(PCAPS / "malformed-ethernet.pcapng"))
    strange = [each._replace(direction=0) for each in frames if each.data[12:14] == b"\x88\xcc"]
    with pytest.raises(CaptureError, match="--guest"):
        find(strange, None, "a.pcap")


def test_an_empty_capture_is_no_error(tmp_path: Path):
    path = changed(PCAPS / "dns-a.pcapng", tmp_path / "a.pcap", keep=slice(0, 0))
    replayed = replay_capture(path)
    assert replayed.summary.frames == 0
    assert replayed.differences == ()


def test_settings_come_back_as_they_were():
    network = network_settings(
        mtu=1400, zones=["lab.internal:db=10.0.0.5,/^web[0-9]+$/=10.0.0.6,*=10.0.0.1"], metadata_access=True
    )
    policy = Spec.enabled(["pypi.org", "10.0.0.0/8:443", "udp/[2001:db8::]/32"], sinkhole="nxdomain").policy()
    line = recorded_settings.recorder(network, policy, {80, 22})(1234)
    back = recorded_settings.read(f"something\n{line}")
    assert back is not None
    assert (back.network, back.policy, back.clock, back.services) == (network, policy, 1234, {80, 22})
    long = Spec.enabled([f"host{number}.example.com" for number in range(2000)]).policy()
    short = recorded_settings.read(recorded_settings.recorder(network, long)(0))
    assert short is not None
    assert short.policy is None
    assert recorded_settings.read("a comment of somebody else's") is None


@pytest.mark.parametrize(
    "text", ['{"format":99}', "{}", "{", '{"format":1,"clock":0,"network":{"link":3},"policy":null}']
)
def test_settings_that_cannot_be_read_are_an_error(text: str):
    with pytest.raises(recorded_settings.RecordedSettingsError):
        recorded_settings.read(f"netstack: {text}" if text != "{" else "netstack: {")


def test_the_document_shows_what_comes_out():
    document = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    shown = document.partition("# netstack trace 1\n")[2].partition("\n\n")[0]
    lines = ["    # netstack trace 1", *shown.splitlines()]
    assert [line.strip() for line in lines] == list(replay_capture(PCAPS / "tcp-refused.pcapng").lines)
