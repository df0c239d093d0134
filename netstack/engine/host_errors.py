"""What the host's network said of a datagram or an echo request, passed on to the guest as the ICMP error it stands for."""

from __future__ import annotations

from typing import Final

from netstack.engine import effects
from netstack.engine.icmp_errors import IcmpErrors
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.wire import icmp

_MESSAGES: Final = {
    effects.REFUSED: (icmp.UNREACHABLE, icmp.PORT_UNREACHABLE),
    effects.NETWORK_UNREACHABLE: (icmp.UNREACHABLE, icmp.NET_UNREACHABLE),
    effects.HOST_UNREACHABLE: (icmp.UNREACHABLE, icmp.HOST_UNREACHABLE),
    effects.PROHIBITED: (icmp.UNREACHABLE, icmp.ADMINISTRATIVELY_PROHIBITED),
    effects.TTL_EXCEEDED: (icmp.TIME_EXCEEDED, icmp.TTL_EXCEEDED),
    effects.TOO_BIG: (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED),
}


class HostErrors:
    """Makes the guest's ICMP error for a failure on the host side."""

    def __init__(self, settings: NetworkSettings, outbox: Outbox, errors: IcmpErrors) -> None:
        self._settings = settings
        self._outbox = outbox
        self._errors = errors

    def tell(
        self, failure: int, packet: bytes, destination: bytes, now: float, *, offender: bytes = b"", mtu: int = 0
    ) -> None:
        """Report `failure` about the guest's `packet`, which went to `destination`.

        `offender` is the router or host that said so, empty when it was the host itself; `mtu` goes with TOO_BIG.
        """
        message = _MESSAGES.get(failure)
        if message is None:
            return
        if failure == effects.REFUSED:
            source = destination  # the host that was addressed says so, under the name the guest knows it by
        else:
            source = offender if offender and offender[0] != 127 else self._settings.gateway_ip
        error = self._errors.make(*message, packet, source, now, next_hop_mtu=mtu)
        if error is not None:
            self._outbox.packets.append((packet[12:16], error))
