"""The DHCP server (RFC 2131, 2132): who has which address, for how long, and what the guest is told with it.

It is the only server of a link that we made, so it speaks with authority. Where the RFC has a server stay silent about
clients it does not know, because another server might, this one grants the address if it is free and refuses it
otherwise: a guest that outlives a restart of its gateway keeps its address.

A lease belongs to the hardware address in `chaddr`, and only a frame from that very address can ask for it or give it
up; requests through relay agents, which would lift that rule, are refused. So one MAC can hold one address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from netstack.engine.events import Event, LeaseEvent
from netstack.engine.settings import BROADCAST_MAC, NetworkSettings
from netstack.wire import dhcp, ethernet
from netstack.wire.ipv4 import format_address

OFFER_TIME: Final = 60.0
"""Seconds an offered address is kept for the client that was offered it."""
DECLINE_TIME: Final = 600.0
"""Seconds an address that a client found in use is not offered again."""
MAX_DECLINED: Final = 64
"""Addresses set aside at one time; the one longest aside comes back early."""
LARGEST_REQUEST: Final = 1500
"""Bytes of a message that are read. Nothing that a client has to say is this long."""
LARGEST_ECHO: Final = 200
"""Bytes of client identifier and relay agent information together: they are sent back, in a packet of 576 bytes."""
LONGEST_HOST_NAME: Final = 255
"""Characters of a guest's name that are kept."""

_LIMITED_BROADCAST: Final = b"\xff" * 4
_HEADERS: Final = 28
"""IP and UDP in front of a message."""
_MIN_LARGEST_PACKET: Final = 576
"""What every client takes (RFC 2131 section 2); option 57 may say more, never less (RFC 2132 section 9.10)."""


class DhcpReply(NamedTuple):
    """A UDP payload for the stack to send from the gateway's port 67."""

    destination_ip: bytes
    destination_mac: bytes
    destination_port: int
    payload: bytes


class _Lease:
    """An address set aside for one MAC: offered, leased, or remembered from an earlier lease."""

    __slots__ = ("address", "expires", "mac", "was_leased")

    def __init__(self, mac: bytes, address: bytes) -> None:
        self.mac = mac
        self.address = address
        self.expires = 0.0
        self.was_leased = False


class DhcpServer:
    """Leases of one subnet.

    `report` gets a LeaseEvent for what changed or was refused, `drop` a reason word for each message that goes unheard.
    Raises ValueError when a static lease or a search domain of the settings cannot be served.
    """

    def __init__(
        self, settings: NetworkSettings, *, report: Callable[[Event], None], drop: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._report = report
        self._drop = drop
        self._network = int.from_bytes(settings.subnet, "big")
        self._hosts = (1 << 32 - settings.prefix_length) - 2
        nat_keys = {address for address in settings.nat if settings.in_subnet(address)}
        reserved = {settings.gateway_ip, settings.host_ip, settings.subnet, settings.broadcast_ip}
        self._reserved = frozenset(reserved | settings.virtual_ips | nat_keys)
        self._static = dict(settings.static_leases)
        self._static_holders = self._check_static()
        self._static_in_use: set[bytes] = set()
        # A MAC is in one of these at most. Each is in order of expiry, for each has one duration.
        self._offers: dict[bytes, _Lease] = {}
        self._leases: dict[bytes, _Lease] = {}
        self._past: dict[bytes, _Lease] = {}
        self._by_address: dict[bytes, _Lease] = {}
        self._declined: dict[bytes, float] = {}
        self._lowest = 1  # every host number below it is taken
        self._search = settings.search_domains
        dhcp.encode_search_list(self._search)

    def _check_static(self) -> dict[bytes, bytes]:
        holders: dict[bytes, bytes] = {}
        for mac, address in self._static.items():
            written = f"static lease {format_address(address)} of {ethernet.format_mac(mac)}"
            if not self._settings.in_subnet(address):
                raise ValueError(f"{written} is outside the subnet")
            if address in self._reserved:
                raise ValueError(f"{written} is reserved: a network, broadcast, gateway, host, virtual or NAT address")
            if address in holders:
                raise ValueError(f"{written} belongs to {ethernet.format_mac(holders[address])} already")
            holders[address] = mac
        return holders

    def receive(self, message: bytes, source_ip: bytes, source_mac: bytes, now: float) -> DhcpReply | None:
        """Take the payload of a datagram to port 67 and return the reply, if one is due.

        The source may be any address, 0.0.0.0 included: clients ask before they have one.
        """
        outcome = self._handle(message, source_ip, source_mac, now)
        if isinstance(outcome, str):
            self._drop(outcome)
            return None
        return outcome

    def leases(self, now: float) -> dict[bytes, bytes]:
        """Address to MAC: the gateway's, every static lease, and each lease in force."""
        self._expire(now)
        table = {self._settings.gateway_ip: self._settings.gateway_mac, **self._static_holders}
        table.update((lease.address, lease.mac) for lease in self._leases.values())
        return table

    def holder(self, address: bytes) -> bytes | None:
        """The MAC an address is leased to, by a lease not found expired; None for others.

        A static lease nobody has asked for keeps nobody out: a guest may be configured by hand with the device's
        address, whatever its MAC.
        """
        static = self._static_holders.get(address)
        if static is not None:
            return static if static in self._static_in_use else None
        lease = self._by_address.get(address)
        return lease.mac if lease is not None and lease.mac in self._leases else None

    # What the client says. A handler returns the reply, None for none, or the reason why the message is dropped.

    def _handle(self, message: bytes, source_ip: bytes, source_mac: bytes, now: float) -> DhcpReply | str | None:
        if len(message) > LARGEST_REQUEST:
            return "dhcp-too-long"
        request = dhcp.parse(message)
        if isinstance(request, str):
            return request
        fault = self._fault(request, source_mac)
        if fault is not None:
            return fault
        self._expire(now)
        kind = request.options[dhcp.MESSAGE_TYPE][0]
        if kind == dhcp.DISCOVER:
            return self._discover(request, now)
        if kind == dhcp.REQUEST:
            return self._request(request, now)
        if kind == dhcp.RELEASE:
            return self._release(request, now)
        if kind == dhcp.DECLINE:
            return self._decline(request, now)
        if kind == dhcp.INFORM:
            return self._inform(request, source_ip)
        return "dhcp-message-type"

    def _fault(self, request: dhcp.DhcpMessage, source_mac: bytes) -> str | None:
        options = request.options
        if request.op != dhcp.BOOT_REQUEST:
            return "dhcp-not-a-request"
        if request.htype != dhcp.ETHERNET or len(request.chaddr) != 6:
            return "dhcp-hardware-type"
        if request.giaddr != dhcp.UNSPECIFIED:
            return "dhcp-relayed"
        if request.chaddr != source_mac:
            return "dhcp-mac-mismatch"
        if not ethernet.is_unicast(source_mac) or source_mac == self._settings.gateway_mac:
            return "dhcp-bad-mac"
        if len(options.get(dhcp.MESSAGE_TYPE, b"")) != 1:
            return "dhcp-message-type"
        if any(len(options.get(code, bytes(4))) != 4 for code in (dhcp.REQUESTED_ADDRESS, dhcp.SERVER_IDENTIFIER)):
            return "dhcp-options"
        if sum(len(options.get(code, b"")) for code in (dhcp.CLIENT_IDENTIFIER, dhcp.RELAY_AGENT)) > LARGEST_ECHO:
            return "dhcp-echo-too-long"
        return None

    def _discover(self, request: dhcp.DhcpMessage, now: float) -> DhcpReply | str:
        """RFC 2131 section 4.3.1; with the rapid commit option, section 4 of RFC 4039: libkrun's init asks for it."""
        mac = request.chaddr
        address = self._address_of(mac)
        if address is None:
            address = self._choose(request.options.get(dhcp.REQUESTED_ADDRESS))
            if address is None:
                self._tell("refused", request, dhcp.UNSPECIFIED)
                return "dhcp-no-free-address"
        if request.options.get(dhcp.RAPID_COMMIT) == b"":
            return self._acknowledge(request, address, now, rapid=True)
        if mac not in self._static and mac not in self._leases:
            known = mac in self._offers
            self._put(self._offers, mac, address, now + OFFER_TIME)
            if not known:
                self._tell("offered", request, address)
        return self._reply(request, dhcp.OFFER, address)

    def _request(self, request: dhcp.DhcpMessage, now: float) -> DhcpReply | str:
        """RFC 2131 section 4.3.2: what is there and what is not says which state the client is in."""
        mac = request.chaddr
        server = request.options.get(dhcp.SERVER_IDENTIFIER)
        wanted = request.options.get(dhcp.REQUESTED_ADDRESS)
        if server is not None:  # SELECTING
            if server != self._settings.gateway_ip:
                # It took another server's offer, so ours is free again; that server will answer, not we.
                if mac in self._offers:
                    self._remove(self._offers, mac)
                return "dhcp-other-server"
        elif wanted is None and request.ciaddr != dhcp.UNSPECIFIED:  # RENEWING (unicast) or REBINDING (broadcast)
            wanted = request.ciaddr
        # else INIT-REBOOT
        if wanted is None:
            return "dhcp-no-address"
        address = self._address_of(mac)
        if address is None and self._is_free(wanted) and self._make_room():
            address = wanted
        if address != wanted:
            self._tell("refused", request, wanted)
            return self._refuse(request)
        return self._acknowledge(request, address, now)

    def _release(self, request: dhcp.DhcpMessage, now: float) -> str | None:
        """RFC 2131 section 4.3.4. The address is remembered for the client, like that of an expired lease."""
        mac, address = request.chaddr, request.ciaddr
        if address != self._address_of(mac) or not (mac in self._leases or mac in self._static):
            return "dhcp-release-mismatch"
        self._static_in_use.discard(mac)
        if mac in self._leases:
            self._tell("released", request, address)
            self._put(self._past, mac, address, now)
        return None

    def _decline(self, request: dhcp.DhcpMessage, now: float) -> str | None:
        """RFC 2131 section 4.3.3: the client found that somebody uses the address already."""
        mac = request.chaddr
        address = request.options.get(dhcp.REQUESTED_ADDRESS)
        ours = request.options.get(dhcp.SERVER_IDENTIFIER) == self._settings.gateway_ip
        if not ours or address is None or address != self._address_of(mac):
            return "dhcp-decline-mismatch"
        self._tell("declined", request, address)
        for table in (self._offers, self._leases, self._past):
            if mac in table:
                self._remove(table, mac)
                if len(self._declined) >= MAX_DECLINED:
                    self._recover_declined()
                self._declined[address] = now + DECLINE_TIME
        # A static lease stays what it is: there is no other address to give.
        return None

    def _inform(self, request: dhcp.DhcpMessage, source_ip: bytes) -> DhcpReply | str:
        """RFC 2131 section 4.3.5: parameters for a client that configured its address itself."""
        address = request.ciaddr if request.ciaddr != dhcp.UNSPECIFIED else source_ip
        if not self._settings.in_subnet(address) or address in self._reserved:
            return "dhcp-inform-address"
        return self._reply(request, dhcp.ACK, None, to=address)

    # Addresses.

    def _address_of(self, mac: bytes) -> bytes | None:
        """What a MAC has, was offered, or had."""
        static = self._static.get(mac)
        if static is not None:
            return static
        for table in (self._leases, self._offers, self._past):
            lease = table.get(mac)
            if lease is not None:
                return lease.address
        return None

    def _is_free(self, address: bytes) -> bool:
        return (
            self._settings.in_subnet(address)
            and address not in self._reserved
            and address not in self._static_holders
            and address not in self._by_address
            and address not in self._declined
        )

    def _choose(self, wanted: bytes | None) -> bytes | None:
        """An address for a new client: the one it wants, the device's, the lowest nobody has, one that is recovered."""
        if not self._make_room():
            return None
        for address in (wanted, self._settings.device_ip):
            if address is not None and self._is_free(address):
                return address
        while True:
            while self._lowest <= self._hosts:
                address = (self._network + self._lowest).to_bytes(4, "big")
                if self._is_free(address):
                    return address
                self._lowest += 1
            if not self._recover():
                return None

    def _make_room(self) -> bool:
        """See to it that one more client can be remembered."""
        return len(self._by_address) < self._settings.max_leases or self._recover()

    def _recover(self) -> bool:
        """Take back what is needed least: a past lease, then a declined address, then the oldest offer."""
        if self._past:
            self._remove(self._past, next(iter(self._past)))
        elif self._declined:
            self._recover_declined()
        elif self._offers:
            self._remove(self._offers, next(iter(self._offers)))
        else:
            return False
        return True

    def _recover_declined(self) -> None:
        address = next(iter(self._declined))
        del self._declined[address]
        self._freed(address)

    def _freed(self, address: bytes) -> None:
        self._lowest = min(self._lowest, int.from_bytes(address, "big") - self._network)

    def _put(self, table: dict[bytes, _Lease], mac: bytes, address: bytes, expires: float) -> _Lease:
        """Move a MAC's lease to the end of `table`, made new if there was none."""
        lease = self._offers.pop(mac, None) or self._leases.pop(mac, None) or self._past.pop(mac, None)
        if lease is None:
            lease = self._by_address[address] = _Lease(mac, address)
        lease.expires = expires
        table[mac] = lease
        return lease

    def _remove(self, table: dict[bytes, _Lease], mac: bytes) -> None:
        address = table.pop(mac).address
        del self._by_address[address]
        self._freed(address)

    def _expire(self, now: float) -> None:
        while self._leases:
            mac, lease = next(iter(self._leases.items()))
            if lease.expires > now:
                break
            self._put(self._past, mac, lease.address, lease.expires)
        while self._offers:
            mac, lease = next(iter(self._offers.items()))
            if lease.expires > now:
                break
            if lease.was_leased:
                self._put(self._past, mac, lease.address, lease.expires)
            else:
                self._remove(self._offers, mac)
        while self._declined and next(iter(self._declined.values())) <= now:
            self._recover_declined()

    # What the server says.

    def _acknowledge(self, request: dhcp.DhcpMessage, address: bytes, now: float, *, rapid: bool = False) -> DhcpReply:
        mac = request.chaddr
        if mac in self._static:
            self._static_in_use.add(mac)
        else:
            self._put(self._leases, mac, address, now + self._settings.lease_time).was_leased = True
        self._tell("acknowledged", request, address)
        return self._reply(request, dhcp.ACK, address, rapid=rapid)

    def _refuse(self, request: dhcp.DhcpMessage) -> DhcpReply:
        options = {
            dhcp.MESSAGE_TYPE: bytes((dhcp.NAK,)),
            dhcp.SERVER_IDENTIFIER: self._settings.gateway_ip,
            dhcp.MESSAGE: b"address not available",
            **_echoed(request),
        }
        payload = dhcp.build(_answer(request, _ordered(options)))
        # RFC 2131 section 4.1: a NAK is always broadcast, for the client may not have the address it speaks of.
        return DhcpReply(_LIMITED_BROADCAST, BROADCAST_MAC, dhcp.CLIENT_PORT, payload)

    def _reply(
        self,
        request: dhcp.DhcpMessage,
        kind: int,
        address: bytes | None,
        *,
        rapid: bool = False,
        to: bytes = dhcp.UNSPECIFIED,
    ) -> DhcpReply:
        """OFFER or ACK with all options gvproxy sends, asked for or not; without `address` (INFORM) no lease.

        gvproxy sends an empty option 119 when there are no search domains. RFC 3397 has no such thing: it is left out.
        """
        settings = self._settings
        options = {
            dhcp.SUBNET_MASK: settings.netmask.to_bytes(4, "big"),
            dhcp.ROUTER: settings.gateway_ip,
            dhcp.DNS_SERVERS: settings.gateway_ip,
            dhcp.INTERFACE_MTU: settings.link.mtu.to_bytes(2, "big"),
            dhcp.MESSAGE_TYPE: bytes((kind,)),
            dhcp.SERVER_IDENTIFIER: settings.gateway_ip,
            **_echoed(request),
        }
        if address is not None:
            options[dhcp.LEASE_TIME] = settings.lease_time.to_bytes(4, "big")
        if rapid:
            options[dhcp.RAPID_COMMIT] = b""
        ciaddr = request.ciaddr if kind == dhcp.ACK else dhcp.UNSPECIFIED  # RFC 2131 section 4.3.1, table 3
        yiaddr = dhcp.UNSPECIFIED if address is None else address
        payload = self._fit(request, _answer(request, options)._replace(ciaddr=ciaddr, yiaddr=yiaddr))
        # RFC 2131 section 4.1, in its order, without relay agents.
        if request.ciaddr != dhcp.UNSPECIFIED or to != dhcp.UNSPECIFIED:
            known = request.ciaddr if to == dhcp.UNSPECIFIED else to
            return DhcpReply(known, request.chaddr, dhcp.CLIENT_PORT, payload)
        if request.flags & dhcp.BROADCAST_FLAG:
            return DhcpReply(_LIMITED_BROADCAST, BROADCAST_MAC, dhcp.CLIENT_PORT, payload)
        return DhcpReply(yiaddr, request.chaddr, dhcp.CLIENT_PORT, payload)

    def _fit(self, request: dhcp.DhcpMessage, reply: dhcp.DhcpMessage) -> bytes:
        """The reply's bytes, with as many search domains, in order, as fit what both client and link take."""
        wish = int.from_bytes(request.options.get(dhcp.MAX_MESSAGE_SIZE, b""), "big")
        largest = max(_MIN_LARGEST_PACKET, min(wish, self._settings.link.mtu)) - _HEADERS
        domains = self._search
        while True:
            search = {dhcp.DOMAIN_SEARCH: dhcp.encode_search_list(domains)} if domains else {}
            payload = dhcp.build(reply._replace(options=_ordered({**reply.options, **search})))
            if len(payload) <= largest or not domains:
                return payload
            domains = domains[:-1]

    def _tell(self, action: str, request: dhcp.DhcpMessage, address: bytes) -> None:
        # Latin-1 gives each byte the guest chose a character of its own.
        host_name = request.options.get(dhcp.HOST_NAME, b"")[:LONGEST_HOST_NAME].decode("latin-1")
        self._report(LeaseEvent(action, request.chaddr, address, host_name))


def _answer(request: dhcp.DhcpMessage, options: Mapping[int, bytes]) -> dhcp.DhcpMessage:
    """A reply with what RFC 2131 section 4.3.1, table 3, has every reply repeat."""
    return dhcp.DhcpMessage(dhcp.BOOT_REPLY, request.xid, request.chaddr, options, flags=request.flags)


def _echoed(request: dhcp.DhcpMessage) -> dict[int, bytes]:
    """Client identifier (RFC 6842) and relay agent information (RFC 3046 section 2.2) go back as they came."""
    codes = (dhcp.CLIENT_IDENTIFIER, dhcp.RELAY_AGENT)
    return {code: request.options[code] for code in codes if code in request.options}


def _ordered(options: Mapping[int, bytes]) -> dict[int, bytes]:
    """By code, as gvproxy sends them, but relay agent information last (RFC 3046 section 2.1)."""
    return dict(sorted(options.items(), key=lambda option: (option[0] == dhcp.RELAY_AGENT, option[0])))
