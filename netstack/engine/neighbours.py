"""ARP (RFC 826, 5227): which MAC an address of the subnet has, and what is answered for the gateway's own addresses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from netstack.engine.settings import NetworkSettings
from netstack.wire import arp, ethernet

TABLE_SIZE: Final = 4096
"""Addresses remembered; the oldest entry makes room for a new one."""
LIFETIME: Final = 300.0
"""Seconds after which an unconfirmed entry is asked after, dropped if silent (RFC 1122 section 2.3.2.1)."""
SWEEP_INTERVAL: Final = 30.0
"""Seconds between two looks for such entries."""
TRIES: Final = 3
RETRY_INTERVAL: Final = 1.0
"""Seconds between requests for one address: RFC 1122 section 2.3.2.1 allows no more than one a second."""
MAX_PENDING: Final = 64
"""Addresses being resolved at one time."""
WAITING_PER_ADDRESS: Final = 1024
"""Callers of `resolve` that wait for one address."""
PACKETS_PER_ADDRESS: Final = 16
"""Packets held per address being resolved; the latest are kept (RFC 1122 section 2.3.2.2)."""

_NO_MAC: Final = bytes(6)


class _Neighbour:
    __slots__ = ("confirmed", "mac")

    def __init__(self, mac: bytes, confirmed: float) -> None:
        self.mac = mac
        self.confirmed = confirmed


class _Resolution:
    """Requests under way for one address: by broadcast when it is unknown, to the old `mac` when it is asked after."""

    __slots__ = ("due", "mac", "packets", "tries", "waiting")

    def __init__(self, mac: bytes, due: float) -> None:
        self.mac = mac
        self.due = due
        self.tries = 0
        self.packets: list[bytes] = []
        self.waiting: list[Callable[[bytes | None, float], None]] = []


class Neighbours:
    """The neighbour table of the gateway's one interface.

    `drop` is called with a reason word for each frame or packet that goes nowhere. `holder` tells to which MAC an
    address is leased (None: to none); an address with a holder is not believed to be anywhere else.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        *,
        drop: Callable[[str], None],
        holder: Callable[[bytes], bytes | None] = lambda _address: None,
    ) -> None:
        self._settings = settings
        self._own = frozenset({settings.gateway_ip}) | settings.virtual_ips
        self._drop = drop
        self._holder = holder
        self._table: dict[bytes, _Neighbour] = {}
        self._resolutions: dict[bytes, _Resolution] = {}
        self._next_sweep = -math.inf
        self._frames: list[bytes] = []
        self.requests_received = 0
        self.replies_received = 0
        self.requests_sent = 0
        self.replies_sent = 0
        self.requests_for_others = 0
        """Requests for addresses that are not the gateway's."""
        self._unreachable: list[bytes] = []

    def lookup(self, address: bytes) -> bytes | None:
        """The MAC of an address, None when it has to be resolved first (`send` does)."""
        neighbour = self._table.get(address)
        return neighbour.mac if neighbour is not None else None

    def confirms(self, address: bytes, mac: bytes, now: float) -> bool:
        """Whether this is the MAC we know an address to have; if so its use is noted."""
        neighbour = self._table.get(address)
        if neighbour is None or neighbour.mac != mac:
            return False
        neighbour.confirmed = now
        return True

    def send(self, address: bytes, packet: bytes, now: float) -> None:
        """Frame an IP packet for an address of the subnet, now or once its MAC is known.

        What cannot be delivered comes back from `take_unreachable` after TRIES unanswered requests.
        """
        mac = self.lookup(address)
        if mac is not None:
            self._frames.append(ethernet.frame(mac, self._settings.gateway_mac, ethernet.IPV4, packet))
            return
        resolution = self._resolutions.get(address)
        if resolution is None:
            resolution = self._resolve(address, ethernet.BROADCAST, now)
            if resolution is None:
                self._drop("arp-too-many-unresolved")
                return
        if len(resolution.packets) >= PACKETS_PER_ADDRESS:
            del resolution.packets[0]
            self._drop("arp-queue-full")
        resolution.packets.append(packet)

    def resolve(self, address: bytes, then: Callable[[bytes | None, float], None], now: float) -> bool:
        """Find the MAC of an address of the subnet: `then(mac, when)` is called once, now or later.

        With None when nobody answered TRIES requests. False, and no call, when too many addresses are being resolved,
        or too many wait for this one.
        """
        mac = self.lookup(address)
        if mac is not None:
            then(mac, now)
            return True
        resolution = self._resolutions.get(address) or self._resolve(address, ethernet.BROADCAST, now)
        if resolution is None or len(resolution.waiting) >= WAITING_PER_ADDRESS:
            self._drop("arp-too-many-unresolved")
            return False
        resolution.waiting.append(then)
        return True

    def learn(self, address: bytes, mac: bytes, now: float) -> None:
        """Note the sender of an IP packet: confirms what is known and adds what is not.

        A known MAC is changed by ARP, or when the address is leased to the sender.

        Both are taken from the guest's frame; addresses nobody of the subnet can have are passed over.
        """
        neighbour = self._table.get(address)
        if neighbour is not None and neighbour.mac == mac:
            neighbour.confirmed = now
        elif (neighbour is None or self._holder(address) == mac) and self._believable(address, mac):
            self._store(address, mac, now)

    def receive(self, payload: bytes | memoryview, source_mac: bytes, now: float) -> None:
        """Take what a frame of type ARP carries; an answer, if one is due, is found in `take_frames`."""
        message = arp.parse(payload)
        if isinstance(message, str):
            self._drop(message)
            return
        if message.operation == arp.REQUEST:
            self.requests_received += 1
        else:
            self.replies_received += 1
        sender = message.sender_ip
        if message.sender_mac != source_mac:
            self._drop("arp-mac-mismatch")
            return
        if not ethernet.is_unicast(source_mac) or source_mac == self._settings.gateway_mac:
            self._drop("arp-bad-mac")
            return
        if sender in self._own:
            # An address conflict (RFC 5227 section 2.4), in which the gateway never gives way.
            self._drop("arp-claims-gateway")
            return
        if self._held_elsewhere(sender, source_mac):
            self._drop("arp-claims-lease")
            return
        asks_us = message.target_ip in self._own
        self.requests_for_others += not asks_us and message.operation == arp.REQUEST
        # RFC 826: what is known is always updated, something new is added only when the message is for us. A probe has
        # no sender address (RFC 5227 section 2.1.1), which is in no subnet.
        if (asks_us or sender in self._table) and self._believable(sender, source_mac):
            self._store(sender, source_mac, now)
        if asks_us and message.operation == arp.REQUEST:
            reply = arp.build(arp.REPLY, self._settings.gateway_mac, message.target_ip, source_mac, sender)
            self._frames.append(ethernet.frame(source_mac, self._settings.gateway_mac, ethernet.ARP, reply))
            self.replies_sent += 1

    def advance(self, now: float) -> None:
        """Repeat or give up requests that are due, and start asking after entries that grew old."""
        for address in [address for address, resolution in self._resolutions.items() if resolution.due <= now]:
            resolution = self._resolutions[address]
            if resolution.tries < TRIES:
                self._request(address, resolution, now)
                continue
            del self._resolutions[address]
            self._table.pop(address, None)
            self._unreachable += resolution.packets
            for then in resolution.waiting:
                then(None, now)
        # No deadline of its own: an idle engine is not woken to look after entries that nobody uses.
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_INTERVAL
            self._sweep(now)

    def next_deadline(self) -> float:
        """When `advance` has something to do; infinity when nothing is being resolved."""
        if not self._resolutions:
            return math.inf
        return min(resolution.due for resolution in self._resolutions.values())

    @property
    def has_news(self) -> bool:
        """Whether `take_frames` or `take_unreachable` have anything to give."""
        return bool(self._frames or self._unreachable)

    def take_frames(self) -> list[bytes]:
        """The frames made since the last call, in order."""
        frames, self._frames = self._frames, []
        return frames

    def take_unreachable(self) -> list[bytes]:
        """The packets given up since the last call: nobody has their address (host unreachable)."""
        packets, self._unreachable = self._unreachable, []
        return packets

    def entries(self) -> dict[bytes, bytes]:
        """Address to MAC, a copy."""
        return {address: neighbour.mac for address, neighbour in self._table.items()}

    def _held_elsewhere(self, address: bytes, mac: bytes) -> bool:
        holder = self._holder(address)
        return holder is not None and holder != mac

    def _believable(self, address: bytes, mac: bytes) -> bool:
        """Whether a host of the subnet can have this address at this MAC."""
        settings = self._settings
        return (
            settings.in_subnet(address)
            and address not in self._own
            and address not in (settings.subnet, settings.broadcast_ip)
            and ethernet.is_unicast(mac)
            and mac != settings.gateway_mac
            and not self._held_elsewhere(address, mac)
        )

    def _store(self, address: bytes, mac: bytes, now: float) -> None:
        # Taken out first, so that the order of the table is the order in which entries were made or confirmed by ARP.
        if self._table.pop(address, None) is None and len(self._table) >= TABLE_SIZE:
            del self._table[next(iter(self._table))]
        self._table[address] = _Neighbour(mac, now)
        resolution = self._resolutions.pop(address, None)
        if resolution is not None:
            gateway_mac = self._settings.gateway_mac
            self._frames += [ethernet.frame(mac, gateway_mac, ethernet.IPV4, packet) for packet in resolution.packets]
            for then in resolution.waiting:
                then(mac, now)

    def _resolve(self, address: bytes, mac: bytes, now: float) -> _Resolution | None:
        if len(self._resolutions) >= MAX_PENDING:
            return None
        resolution = self._resolutions[address] = _Resolution(mac, now)
        self._request(address, resolution, now)
        return resolution

    def _request(self, address: bytes, resolution: _Resolution, now: float) -> None:
        resolution.tries += 1
        self.requests_sent += 1
        resolution.due = now + RETRY_INTERVAL
        settings = self._settings
        request = arp.build(arp.REQUEST, settings.gateway_mac, settings.gateway_ip, _NO_MAC, address)
        self._frames.append(ethernet.frame(resolution.mac, settings.gateway_mac, ethernet.ARP, request))

    def _sweep(self, now: float) -> None:
        old = [
            (address, neighbour.mac)
            for address, neighbour in self._table.items()
            if now - neighbour.confirmed >= LIFETIME and address not in self._resolutions
        ]
        for address, mac in old:
            if self._resolve(address, mac, now) is None:
                del self._table[address]
