"""What the host's network said of a guest's packet, passed on to the guest as the ICMP error it stands for."""

from __future__ import annotations

from typing import Final

from netstack.engine import effects
from netstack.engine.icmp_errors import IcmpErrors
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.wire import icmp, ipv4

_MESSAGES: Final = {
    effects.REFUSED: (icmp.UNREACHABLE, icmp.PORT_UNREACHABLE),
    effects.NETWORK_UNREACHABLE: (icmp.UNREACHABLE, icmp.NET_UNREACHABLE),
    effects.HOST_UNREACHABLE: (icmp.UNREACHABLE, icmp.HOST_UNREACHABLE),
    effects.PROHIBITED: (icmp.UNREACHABLE, icmp.ADMINISTRATIVELY_PROHIBITED),
    effects.TIMED_OUT: (icmp.UNREACHABLE, icmp.HOST_UNREACHABLE),
    effects.TTL_EXCEEDED: (icmp.TIME_EXCEEDED, icmp.TTL_EXCEEDED),
    effects.TOO_BIG: (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED),
}


def quotable(packet: bytes) -> bytes:
    """What has to be kept of a packet to quote it later: its start, of a packet of 64 KiB as of one of 600 bytes."""
    return packet[: icmp.MAX_ERROR]


def quoted_whole(kept: bytes) -> bytes:
    """What `quotable` kept, as long as its header says. No error is large enough to show what was filled in."""
    return kept.ljust(int.from_bytes(kept[2:4], "big"), b"\0")


class HostErrors:
    """Makes the guest's ICMP error for a failure on the host side."""

    def __init__(self, settings: NetworkSettings, outbox: Outbox, errors: IcmpErrors) -> None:
        self._settings = settings
        self._outbox = outbox
        self._errors = errors

    def tell(
        self,
        failure: int,
        kept: bytes,
        now: float,
        *,
        dialled: bytes,
        offender: bytes = b"",
        mtu: int = 0,
    ) -> bool:
        """Report `failure` about the guest's packet, of which `quotable` kept the start; it was sent on to `dialled`.

        `offender` is the router or host that said so, empty when it was the host itself; `mtu` goes with TOO_BIG.
        Returns whether the guest is told: there are packets no error may answer, and a bound on their rate.
        """
        message = _MESSAGES.get(failure)
        if message is None or not kept:
            return False
        too_big = failure == effects.TOO_BIG
        if too_big and not int.from_bytes(kept[6:8], "big") & ipv4.DONT_FRAGMENT:
            return False  # RFC 792: only where DF forbids what is needed; the next one the host will cut
        error = self._errors.make(
            *message,
            quoted_whole(kept),
            self._source(kept[16:20], dialled, dialled if failure == effects.REFUSED else offender),
            now,
            next_hop_mtu=min(mtu, ipv4.MAX_PACKET) if too_big else 0,
        )
        if error is None:
            return False
        self._outbox.packets.append((kept[12:16], error))
        return True

    def _source(self, destination: bytes, dialled: bytes, offender: bytes) -> bytes:
        """Who tells the guest: the host it addressed, by the name it used; a router on the way; else the gateway."""
        if offender == dialled:
            return destination
        # An address that means something else to the guest, as one of its own network, is not shown to it.
        if not offender or self._settings.in_subnet(offender) or offender[0] in (0, 127) or offender[0] >= 224:
            return self._settings.gateway_ip
        return offender
