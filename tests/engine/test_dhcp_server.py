"""The DHCP server in virtual time, with scapy as its clients (conformance E11 and K4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from netstack.engine import dhcp_server
from netstack.engine.dhcp_server import DhcpReply, DhcpServer
from netstack.engine.events import Event, LeaseEvent
from netstack.engine.settings import LinkTraits, NetworkSettings

GATEWAY = "192.168.127.1"
BROADCAST = "255.255.255.255"
BROADCAST_MAC = b"\xff" * 6
FLAG = 0x8000


def ip(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def text(address: bytes) -> str:
    return ".".join(map(str, address))


def mac(number: int) -> bytes:
    return b"\x02\x00" + number.to_bytes(4, "big")


class Answer:
    """A reply as scapy reads it."""

    def __init__(self, reply: DhcpReply) -> None:
        self.reply = reply
        self.bootp = BOOTP(reply.payload)
        assert self.bootp.op == 2
        self.options = {option[0]: option[1] for option in self.bootp[DHCP].options if isinstance(option, tuple)}
        self.search_list = b"".join(option[1] for option in self.bootp[DHCP].options if option[0] == 119)
        self.kind = {2: "offer", 5: "ack", 6: "nak"}[self.options["message-type"]]
        self.address = self.bootp.yiaddr
        self.to = (text(reply.destination_ip), reply.destination_mac)


class Network:
    """A server, what it reported and what it dropped."""

    def __init__(self, **settings: object) -> None:
        self.events: list[Event] = []
        self.drops: Counter[str] = Counter()
        self.settings = NetworkSettings(**settings)
        self.server = DhcpServer(
            self.settings, report=self.events.append, drop=lambda reason: self.drops.update([reason])
        )
        self.now = 0.0

    def client(self, number: int = 2) -> Client:
        return Client(self, mac(number))

    def leases(self) -> dict[str, bytes]:
        return {text(address): holder for address, holder in self.server.leases(self.now).items()}

    def actions(self) -> list[tuple[str, str]]:
        return [(event.action, text(event.address)) for event in self.events if isinstance(event, LeaseEvent)]


class Client:
    """One MAC that speaks DHCP."""

    def __init__(self, network: Network, address: bytes) -> None:
        self.network = network
        self.mac = address

    def send(
        self, kind: str | int, *options: object, source: str = "0.0.0.0", frame: bytes | None = None, **fields: object
    ) -> Answer | None:
        fields = {"chaddr": self.mac, "xid": 0xDEADBEEF, "op": 1} | fields
        message = bytes(BOOTP(**fields) / DHCP(options=[("message-type", kind), *options, "end"]))
        return self.raw(message, source=source, frame=frame)

    def raw(self, message: bytes, *, source: str = "0.0.0.0", frame: bytes | None = None) -> Answer | None:
        reply = self.network.server.receive(message, ip(source), frame or self.mac, self.network.now)
        return Answer(reply) if reply is not None else None

    def discover(self, *options: object, **fields: object) -> Answer:
        answer = self.send("discover", *options, **fields)
        assert answer is not None, self.network.drops
        return answer

    def select(self, address: str, *options: object, server: str = GATEWAY, **fields: object) -> Answer | None:
        return self.send("request", ("requested_addr", address), ("server_id", server), *options, **fields)

    def reboot(self, address: str, **fields: object) -> Answer | None:
        return self.send("request", ("requested_addr", address), **fields)

    def renew(self, address: str, **fields: object) -> Answer | None:
        return self.send("request", ciaddr=address, source=address, **fields)

    def release(self, address: str, **fields: object) -> None:
        assert self.send("release", ("server_id", GATEWAY), ciaddr=address, source=address, **fields) is None

    def decline(self, address: str, server: str = GATEWAY) -> None:
        assert self.send("decline", ("requested_addr", address), ("server_id", server)) is None

    def join(self, *options: object) -> str:
        """DISCOVER, OFFER, REQUEST, ACK; the address."""
        offer = self.discover(*options)
        assert offer.kind == "offer"
        ack = self.select(offer.address)
        assert ack is not None
        assert (ack.kind, ack.address) == ("ack", offer.address)
        return str(ack.address)


# -- what a reply looks like


def test_the_options_are_gvproxys_byte_for_byte() -> None:
    """gvproxy's OFFER without its empty option 119, whatever the client asks for."""
    network = Network()
    for wish in ([], [("param_req_list", [1])]):
        offer = network.client().discover(*wish)
        block = "0104ffffff00 0304c0a87f01 0604c0a87f01 1a0205dc 330400000e10 350102 3604c0a87f01 ff"
        assert offer.reply.payload[240:].rstrip(b"\x00") == bytes.fromhex(block)
        assert len(offer.reply.payload) == 300


def test_the_fixed_fields() -> None:
    offer = Network().client().discover(secs=9, flags=FLAG)
    sent = offer.bootp
    assert (sent.op, sent.htype, sent.hlen, sent.hops, sent.xid, sent.secs) == (2, 1, 6, 0, 0xDEADBEEF, 0)
    assert (int(sent.flags), sent.ciaddr, sent.yiaddr) == (FLAG, "0.0.0.0", "192.168.127.2")
    assert (sent.siaddr, sent.giaddr, bytes(sent.chaddr)[:6]) == ("0.0.0.0", "0.0.0.0", mac(2))
    assert (bytes(sent.sname).strip(b"\x00"), bytes(sent.file).strip(b"\x00")) == (b"", b"")


def test_what_the_settings_say_is_what_the_guest_is_told() -> None:
    network = Network(
        subnet=ip("10.20.0.0"),
        prefix_length=16,
        gateway_ip=ip("10.20.0.1"),
        device_ip=ip("10.20.0.9"),
        host_ip=ip("10.20.0.2"),
        link=LinkTraits(mtu=9000),
        lease_time=7200,
        search_domains=("corp.example", "example.com"),
    )
    options = network.client().discover().options
    assert options["subnet_mask"] == "255.255.0.0"
    assert options["router"] == options["name_server"] == options["server_id"] == "10.20.0.1"
    assert options["interface-mtu"] == 9000
    assert options["lease_time"] == 7200
    assert options[119] == b"\x04corp\x07example\x00\x07example\x03com\x00"


def test_client_identifier_and_relay_information_come_back() -> None:
    """RFC 6842; RFC 3046 section 2.1 wants option 82 last."""
    agent = b"\x01\x04port"
    network = Network(search_domains=("a",))
    offer = network.client().discover(("client_id", b"\x01abc"), ("relay_agent_information", agent))
    assert offer.options["client_id"] == b"\x01abc"
    assert offer.reply.payload.rstrip(b"\x00").endswith(b"\x77\x03\x01a\x00\x52\x06" + agent + b"\xff")


@pytest.mark.parametrize(("flags", "to"), [(0, ("192.168.127.2", mac(2))), (FLAG, (BROADCAST, BROADCAST_MAC))])
def test_where_offer_and_ack_go(flags: int, to: tuple[str, bytes]) -> None:
    """RFC 2131 section 4.1."""
    client = Network().client()
    offer = client.discover(flags=flags)
    ack = client.select(offer.address, flags=flags)
    assert ack is not None
    assert offer.to == ack.to == to
    assert offer.reply.destination_port == ack.reply.destination_port == 68


def test_a_client_with_a_makeshift_source_address_is_served() -> None:
    """libkrun's init gave itself 169.254.1.1 to be able to ask at all; it sets the broadcast flag."""
    offer = Network().client().discover(source="169.254.1.1", flags=FLAG)
    assert offer.to == (BROADCAST, BROADCAST_MAC)


def test_a_renewal_is_answered_to_the_address() -> None:
    client = Network().client()
    address = client.join()
    ack = client.renew(address, flags=FLAG)
    assert ack is not None
    assert ack.to == (address, client.mac)
    assert (ack.bootp.ciaddr, ack.address) == (address, address)


# -- which address


def test_the_device_address_first_then_the_lowest() -> None:
    network = Network(device_ip=ip("192.168.127.50"))
    assert [network.client(number).join() for number in range(1, 4)] == [
        "192.168.127.50",
        "192.168.127.2",
        "192.168.127.3",
    ]


def test_no_reserved_address_is_ever_handed_out() -> None:
    """gvproxy's pool holds the host address and the broadcast address; and the pool's end is an end."""
    network = Network(
        nat={
            ip("192.168.127.254"): ip("127.0.0.1"),
            ip("192.168.127.77"): ip("127.0.0.1"),
            ip("1.1.1.1"): ip("2.2.2.2"),
        },
        virtual_ips=frozenset({ip("192.168.127.254"), ip("192.168.127.88")}),
        static_leases={mac(900): ip("192.168.127.66")},
    )
    taken = [network.client(number).join() for number in range(249)]
    assert len(set(taken)) == 249
    expected = {f"192.168.127.{host}" for host in range(1, 255)} - {
        f"192.168.127.{host}" for host in (1, 66, 77, 88, 254)
    }
    assert set(taken) == expected
    assert network.client(500).send("discover") is None
    assert network.drops == {"dhcp-no-free-address": 1}
    assert network.actions()[-1] == ("refused", "0.0.0.0")


@pytest.mark.parametrize(
    "wish", ["192.168.127.1", "192.168.127.254", "192.168.127.0", "192.168.127.255", "192.168.127.66", "10.0.0.9"]
)
def test_a_wish_for_a_reserved_address_is_not_met(wish: str) -> None:
    network = Network(static_leases={mac(9): ip("192.168.127.66")})
    assert network.client().discover(("requested_addr", wish)).address == "192.168.127.2"
    answer = network.client(3).reboot(wish)
    assert answer is not None
    assert answer.kind == "nak"


def test_a_wish_for_a_free_address_is_met() -> None:
    assert Network().client().join(("requested_addr", "192.168.127.40")) == "192.168.127.40"


def test_a_mac_keeps_its_address() -> None:
    """E11: other client identifiers, other names, other wishes: one MAC, one address."""
    network = Network()
    client = network.client()
    address = client.join()
    for number in range(50):
        wish = ("requested_addr", f"192.168.127.{number + 100}")
        again = client.discover(("client_id", bytes([1, number])), ("hostname", b"h%d" % number), wish)
        assert again.address == address
    assert network.leases() == {GATEWAY: network.settings.gateway_mac, address: client.mac}


def test_static_leases() -> None:
    network = Network(static_leases={mac(2): ip("192.168.127.50"), mac(3): ip("192.168.127.2")})
    assert network.client(4).join() == "192.168.127.3"  # the device address is somebody's
    assert network.client(2).join(("requested_addr", "192.168.127.90")) == "192.168.127.50"
    assert network.client(3).join() == "192.168.127.2"
    network.client(2).release("192.168.127.50")
    assert network.leases() == {
        GATEWAY: network.settings.gateway_mac,
        "192.168.127.50": mac(2),
        "192.168.127.2": mac(3),
        "192.168.127.3": mac(4),
    }
    answer = network.client(2).reboot("192.168.127.3")
    assert answer is not None
    assert answer.kind == "nak"


@pytest.mark.parametrize(
    ("leases", "complaint"),
    [
        ({mac(2): ip("10.0.0.1")}, "10.0.0.1 of 02:00:00:00:00:02 is outside the subnet"),
        ({mac(2): ip(GATEWAY)}, "reserved"),
        ({mac(2): ip("192.168.127.255")}, "reserved"),
        ({mac(2): ip("192.168.127.254")}, "reserved"),
        ({mac(2): ip("192.168.127.9"), mac(3): ip("192.168.127.9")}, "belongs to 02:00:00:00:00:02 already"),
    ],
)
def test_static_leases_that_cannot_be(leases: Mapping[bytes, bytes], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Network(static_leases=leases)


def test_a_search_domain_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="empty label"):
        Network(search_domains=("a..b",))


def test_whom_an_address_belongs_to() -> None:
    network = Network(static_leases={mac(9): ip("192.168.127.66")})
    client = network.client()
    client.discover()
    assert network.server.holder(ip("192.168.127.2")) is None  # offered only
    client.join()
    assert network.server.holder(ip("192.168.127.2")) == client.mac
    assert network.server.holder(ip("192.168.127.66")) is None  # reserved, and nobody has asked for it yet
    network.client(9).join()
    assert network.server.holder(ip("192.168.127.66")) == mac(9)
    assert network.server.holder(ip("192.168.127.3")) is None
    client.release("192.168.127.2")
    assert network.server.holder(ip("192.168.127.2")) is None


# -- REQUEST, state by state (RFC 2131 section 4.3.2)


def nak(answer: Answer | None) -> bool:
    if answer is None or answer.kind != "nak":
        return False
    assert answer.to == (BROADCAST, BROADCAST_MAC)
    assert (answer.address, answer.bootp.ciaddr) == ("0.0.0.0", "0.0.0.0")
    # Table 3: no parameters in a NAK.
    assert set(answer.options) <= {"message-type", "server_id", "error_message", "client_id"}
    return True


def test_selecting() -> None:
    network = Network()
    client = network.client()
    offer = client.discover()
    assert nak(client.select("192.168.127.9"))
    answer = client.select(offer.address)
    assert answer is not None
    assert answer.kind == "ack"
    assert network.actions() == [
        ("offered", "192.168.127.2"),
        ("refused", "192.168.127.9"),
        ("acknowledged", "192.168.127.2"),
    ]


def test_selecting_another_server_gives_the_offer_back() -> None:
    """gvproxy acknowledges these."""
    network = Network()
    client = network.client()
    offer = client.discover()
    assert client.select(offer.address, server="192.168.127.33") is None
    assert network.drops == {"dhcp-other-server": 1}
    assert network.client(3).join() == offer.address
    # A client that has a lease does not lose it that way.
    assert network.client(3).select(offer.address, server="192.168.127.33") is None
    assert offer.address in network.leases()


def test_selecting_without_an_offer() -> None:
    """The gateway was restarted in between: the address is free, so it is granted."""
    network = Network()
    answer = network.client().select("192.168.127.7")
    assert answer is not None
    assert (answer.kind, answer.address) == ("ack", "192.168.127.7")
    assert nak(network.client(3).select("192.168.127.7"))


def test_init_reboot() -> None:
    network = Network()
    client = network.client()
    address = client.join()
    answer = client.reboot(address)
    assert answer is not None
    assert (answer.kind, answer.address) == ("ack", address)
    assert nak(client.reboot("192.168.127.3"))
    assert nak(client.reboot("192.168.1.2"))  # moved from another network
    assert nak(network.client(3).reboot(address))  # somebody else's


@pytest.mark.parametrize("flags", [0, FLAG])
def test_renewing_and_rebinding(flags: int) -> None:
    """The two differ in where the client sends to only."""
    network = Network()
    client = network.client()
    address = client.join()
    network.now = 1800.0
    answer = client.renew(address, flags=flags)
    assert answer is not None
    assert (answer.kind, answer.address) == ("ack", address)
    network.now = 1800.0 + 3599
    assert address in network.leases()
    network.now = 1800.0 + 3600
    assert address not in network.leases()
    assert nak(client.renew("192.168.127.9"))
    assert nak(client.renew("10.0.2.15"))


def test_clients_unknown_after_a_restart_keep_what_is_free() -> None:
    network = Network()
    renewed = network.client(2).renew("192.168.127.30")
    rebooted = network.client(3).reboot("192.168.127.31")
    assert renewed is not None
    assert rebooted is not None
    assert (renewed.address, rebooted.address) == ("192.168.127.30", "192.168.127.31")


def test_a_request_that_names_no_address() -> None:
    network = Network()
    assert network.client().send("request") is None
    assert network.client().send("request", ("server_id", GATEWAY)) is None
    assert network.drops == {"dhcp-no-address": 2}


# -- RELEASE, DECLINE, INFORM, rapid commit


def test_release_frees_and_remembers() -> None:
    network = Network()
    client = network.client()
    address = client.join()
    client.release(address)
    assert address not in network.leases()
    assert network.actions()[-1] == ("released", address)
    assert network.client(3).join() != address
    assert client.join() == address


def test_release_of_what_one_does_not_have() -> None:
    network = Network()
    client = network.client()
    address = client.join()
    network.client(3).release(address)
    client.release("192.168.127.77")
    assert address in network.leases()
    assert network.drops == {"dhcp-release-mismatch": 2}
    client.release(address)
    client.release(address)
    assert network.drops == {"dhcp-release-mismatch": 3}


def test_a_declined_address_is_set_aside_for_a_time() -> None:
    network = Network()
    client = network.client()
    address = client.join()
    client.decline(address)
    assert address not in network.leases()
    assert network.actions()[-1] == ("declined", address)
    second = client.discover(("requested_addr", address)).address
    assert second == "192.168.127.3"
    network.now = dhcp_server.DECLINE_TIME - 1
    assert network.client(4).join(("requested_addr", address)) == "192.168.127.3"
    network.now = dhcp_server.DECLINE_TIME
    assert network.client(5).join() == address


def test_declines_that_do_not_count() -> None:
    network = Network(static_leases={mac(9): ip("192.168.127.66")})
    client = network.client()
    address = client.join()
    network.client(3).decline(address)
    client.decline(address, server="192.168.127.9")
    client.decline("192.168.127.3")
    assert client.send("decline", ("server_id", GATEWAY)) is None
    assert network.drops == {"dhcp-decline-mismatch": 4}
    assert address in network.leases()
    # There is no other address for a static lease.
    network.client(9).decline("192.168.127.66")
    assert network.client(9).join() == "192.168.127.66"


def test_addresses_set_aside_are_bounded() -> None:
    """A guest that declines everything does not empty the pool."""
    network = Network()
    client = network.client()
    for _ in range(1000):
        client.decline(client.join())
    assert client.join()
    assert len(network.server._declined) == dhcp_server.MAX_DECLINED


def test_inform() -> None:
    """RFC 2131 section 4.3.5: no lease time, no address, and nothing remembered."""
    network = Network()
    answer = network.client().send("inform", ciaddr="192.168.127.40", source="192.168.127.40")
    assert answer is not None
    assert (answer.kind, answer.address, answer.bootp.ciaddr) == ("ack", "0.0.0.0", "192.168.127.40")
    assert "lease_time" not in answer.options
    assert answer.options["router"] == GATEWAY
    assert answer.to == ("192.168.127.40", mac(2))
    assert list(network.leases()) == [GATEWAY]
    # Some clients leave ciaddr empty; the packet says where they are.
    answer = network.client().send("inform", source="192.168.127.40")
    assert answer is not None
    assert answer.to == ("192.168.127.40", mac(2))


@pytest.mark.parametrize("address", ["0.0.0.0", "10.0.0.1", GATEWAY, "192.168.127.254", "192.168.127.255"])
def test_inform_from_where_nobody_can_be(address: str) -> None:
    network = Network()
    assert network.client().send("inform", ciaddr=address, source=address) is None
    assert network.drops == {"dhcp-inform-address": 1}


def test_rapid_commit() -> None:
    """RFC 4039. libkrun's init waits 100 ms for an answer, older ones take the first answer for an ACK."""
    network = Network()
    answer = network.client().send("discover", (80, b""), flags=FLAG)
    assert answer is not None
    assert (answer.kind, answer.address) == ("ack", "192.168.127.2")
    assert b"\x50\x00" in answer.reply.payload[240:]
    assert answer.options["lease_time"] == 3600
    assert network.leases()["192.168.127.2"] == mac(2)
    assert network.actions() == [("acknowledged", "192.168.127.2")]
    ordinary = network.client(3).discover()
    assert b"\x50\x00" not in ordinary.reply.payload[240:]


# -- time


def test_a_lease_ends_and_its_address_stays_with_its_mac_while_there_is_room() -> None:
    network = Network(lease_time=100)
    client = network.client()
    address = client.join()
    network.now = 99.9
    assert address in network.leases()
    network.now = 100.0
    assert address not in network.leases()
    assert network.client(3).join() != address
    network.now = 1_000_000.0
    assert client.join() == address


def test_an_offer_that_is_not_taken_up_is_free_again() -> None:
    network = Network()
    offer = network.client().discover()
    assert network.client(3).discover().address != offer.address
    network.now = dhcp_server.OFFER_TIME
    assert network.client(4).discover().address == offer.address


def test_a_past_lease_survives_an_offer_not_taken_up() -> None:
    network = Network()
    client = network.client()
    address = client.join()
    client.release(address)
    assert client.discover().address == address
    network.now = 1000.0
    assert network.client(3).join() != address
    assert client.join() == address


def test_when_room_is_short_the_oldest_past_lease_goes_first() -> None:
    network = Network(subnet=ip("192.168.127.0"), prefix_length=29, device_ip=ip("192.168.127.2"))
    addresses = {}
    for number in range(2, 7):  # .2 to .6
        addresses[number] = network.client(number).join()
        network.now += 1
    assert len(set(addresses.values())) == 5
    assert network.client(50).send("discover") is None
    network.client(5).release(addresses[5])
    network.now += 1
    network.client(3).release(addresses[3])
    assert network.client(50).join() == addresses[5]
    assert network.client(51).join() == addresses[3]
    assert network.client(52).send("discover") is None


def test_then_declined_addresses_then_offers() -> None:
    network = Network(subnet=ip("192.168.127.0"), prefix_length=29, device_ip=ip("192.168.127.2"))
    declined = network.client(2).join()
    network.client(2).decline(declined)
    offers = [network.client(number).discover().address for number in range(3, 7)]
    assert network.client(7).discover().address == declined
    assert network.client(8).discover().address == offers[0]
    # Its first holder asks too late.
    assert nak(network.client(3).select(offers[0]))


# -- a guest that means no good


def test_starvation() -> None:
    """E11: thousands of MACs. Static and existing leases stay, memory is bounded, and it ends when the guest stops."""
    network = Network(static_leases={mac(1): ip("192.168.127.66")}, lease_time=600)
    victim = network.client(2)
    address = victim.join()
    for number in range(100, 5100):
        client = network.client(number)
        offer = client.send("discover")
        if offer is not None:
            client.select(offer.address)
    assert len(network.leases()) == 252 + 1  # 1-254 less the host's, all leased, and the gateway among them
    assert network.drops["dhcp-no-free-address"] == 5000 - 250
    assert network.client(1).join() == "192.168.127.66"
    answer = victim.renew(address)
    assert answer is not None
    assert answer.kind == "ack"
    network.now = 700.0
    assert network.client(9999).join()


def test_discovers_alone_do_not_keep_others_out() -> None:
    network = Network()
    for number in range(100, 5100):
        network.client(number).discover()
    assert network.client(2).join()


def test_what_is_remembered_is_bounded_in_a_large_subnet() -> None:
    network = Network(subnet=ip("10.0.0.0"), prefix_length=8, gateway_ip=ip("10.0.0.1"), device_ip=ip("10.0.0.2"))
    for number in range(network.settings.max_leases + 1000):
        network.client(number).send("discover")
    server = network.server
    assert len(server._by_address) == len(server._offers) == network.settings.max_leases
    for number in range(10_000, 10_000 + network.settings.max_leases + 10):
        network.client(number).send("discover", (80, b""))
    assert len(server._by_address) == len(server._leases) == network.settings.max_leases
    assert network.drops == {"dhcp-no-free-address": 10}
    assert nak(network.client(1).reboot("10.200.0.1"))


@pytest.mark.parametrize(
    ("fields", "frame", "reason"),
    [
        ({"op": 2}, mac(2), "dhcp-not-a-request"),  # E11: a forged server's reply
        ({"op": 0}, mac(2), "dhcp-not-a-request"),
        ({"htype": 6}, mac(2), "dhcp-hardware-type"),
        ({"hlen": 0}, mac(2), "dhcp-hardware-type"),
        ({"hlen": 16}, mac(2), "dhcp-hardware-type"),
        ({"hlen": 17}, mac(2), "dhcp-hlen"),
        ({"hlen": 255}, mac(2), "dhcp-hlen"),
        ({"giaddr": "192.168.127.9"}, mac(2), "dhcp-relayed"),
        ({"chaddr": mac(3)}, mac(2), "dhcp-mac-mismatch"),
        ({"chaddr": b"\x01\x00\x5e\x00\x00\x01"}, b"\x01\x00\x5e\x00\x00\x01", "dhcp-bad-mac"),
        ({"chaddr": bytes(6)}, bytes(6), "dhcp-bad-mac"),
        ({"chaddr": b"\x5a\x94\xef\xe4\x0c\xdd"}, b"\x5a\x94\xef\xe4\x0c\xdd", "dhcp-bad-mac"),
    ],
)
def test_headers_that_are_refused(fields: dict[str, object], frame: bytes, reason: str) -> None:
    network = Network()
    assert network.client().send("discover", frame=frame, **fields) is None
    assert network.drops == {reason: 1}
    assert list(network.leases()) == [GATEWAY]


@pytest.mark.parametrize("kind", [0, 2, 5, 6, 9, 13, 255])
def test_messages_no_client_sends(kind: int) -> None:
    network = Network()
    assert network.client().send(kind, ("requested_addr", "192.168.127.9"), ("server_id", GATEWAY)) is None
    assert network.drops == {"dhcp-message-type": 1}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (b"", "dhcp-message-type"),
        (b"\xff", "dhcp-message-type"),
        (b"\x35\x00\xff", "dhcp-message-type"),
        (b"\x35\x02\x01\x01\xff", "dhcp-message-type"),
        (b"\x35\x01\x01\x35\x01\x03\xff", "dhcp-message-type"),
        (b"\x35\x01\x01\x32\x03abc\xff", "dhcp-options"),
        (b"\x35\x01\x01\x32\x05abcde\xff", "dhcp-options"),
        (b"\x35\x01\x03\x36\x00\xff", "dhcp-options"),
        (b"\x35\x01\x01\x3d\xff", "dhcp-options"),
        (b"\x35\x01\x01\x34\x01\x07\xff", "dhcp-overload"),
        (b"\x35\x01\x01\x3d\xc9" + bytes(201) + b"\xff", "dhcp-echo-too-long"),
        (b"\x35\x01\x01\x3d\x80" + bytes(128) + b"\x52\x80" + bytes(128) + b"\xff", "dhcp-echo-too-long"),
        (b"\x35\x01\x01\x3d\xff" + bytes(255) + b"\x3d\xff" + bytes(255) + b"\xff", "dhcp-echo-too-long"),
        (b"\x35\x01\x01\xff" + bytes(1300), "dhcp-too-long"),
    ],
)
def test_option_games(options: bytes, reason: str) -> None:
    """K4."""
    network = Network()
    message = bytes(BOOTP(chaddr=mac(2), options=b"\x63\x82\x53\x63")) + options
    assert network.client().raw(message) is None
    assert network.drops == {reason: 1}


MANY_DOMAINS = tuple(f"department-{number}.some-rather-long-name.example" for number in range(30))


@pytest.mark.parametrize(
    ("mtu", "size", "largest"),
    [
        (1500, None, 576),
        (1500, 100, 576),  # RFC 2132 section 9.10: never below 576
        (1500, 1000, 1000),
        (1500, 65_535, 1500),
        (9000, 65_535, 9000),
        (400, 65_535, 576),  # what every host takes, in fragments (RFC 791)
    ],
)
def test_a_reply_fits_client_and_link(mtu: int, size: int | None, largest: int) -> None:
    """K4: the search list gives way; everything else always fits 576 bytes."""
    network = Network(link=LinkTraits(mtu=mtu), search_domains=MANY_DOMAINS)
    options: list[object] = [("client_id", bytes(200))]
    if size is not None:
        options.append(("max_dhcp_size", size))
    for answer in (
        network.client().discover(*options),
        network.client().select("192.168.127.2", *options),
        network.client().reboot("10.0.0.1"),
        network.client().send("discover", (80, b""), *options),
    ):
        assert answer is not None
        assert len(answer.reply.payload) + 28 <= largest
        assert len(answer.reply.payload) >= 300


def test_search_domains_that_fit_are_the_first() -> None:
    network = Network(search_domains=MANY_DOMAINS)
    value = network.client().discover().search_list
    assert value.startswith(b"\x0cdepartment-0\x15some-rather-long-name\x07example\x00\x0cdepartment-1")
    assert b"department-29" not in value
    assert value.endswith(b"\x00")


def test_a_search_list_over_255_bytes_is_split() -> None:
    """RFC 3396."""
    network = Network(search_domains=MANY_DOMAINS[:8])
    offer = network.client().discover(("max_dhcp_size", 1500))
    assert offer.reply.payload.count(b"\x77\xff\x0cdepartment-0") == 1
    assert len(offer.search_list) > 255
    assert offer.search_list.count(b"\x07example\x00") == 8


def test_names_the_guest_gives_are_bounded_and_reported() -> None:
    network = Network()
    network.client().discover(("hostname", b"caf\xe9\n\x00"))
    network.client(3).discover((12, b"x" * 200), (12, b"x" * 200))
    names = [event.hostname for event in network.events if isinstance(event, LeaseEvent)]
    assert names == ["caf\xe9\n\x00", "x" * dhcp_server.LONGEST_HOST_NAME]


def test_repeated_discovers_are_one_event() -> None:
    network = Network()
    for _ in range(20):
        network.client().discover()
    assert network.actions() == [("offered", "192.168.127.2")]


@given(message=st.binary(max_size=700), source=st.binary(min_size=4, max_size=4), now=st.floats(0, 1e9))
def test_any_bytes(message: bytes, source: bytes, now: float) -> None:
    network = Network()
    head = bytes(BOOTP(chaddr=mac(2), options=b"\x63\x82\x53\x63"))
    for data in (message, head + message, head + b"\x35\x01\x03" + message, head[:28] + message):
        network.server.receive(data, source, mac(2), now)


steps = st.lists(
    st.tuples(
        st.sampled_from(["discover", "rapid", "select", "reboot", "renew", "release", "decline", "other"]),
        st.integers(1, 9),  # whose MAC
        st.integers(0, 8),  # the address it names
        st.floats(0, 40),  # seconds passed
    ),
    max_size=60,
)


@given(steps)
def test_whatever_clients_do_no_two_have_one_address(script: list[tuple[str, int, int, float]]) -> None:
    network = Network(
        prefix_length=29,
        host_ip=ip("192.168.127.6"),
        virtual_ips=frozenset({ip("192.168.127.6")}),
        nat={},
        lease_time=100,
        static_leases={mac(1): ip("192.168.127.5")},
    )
    forbidden = {f"192.168.127.{host}" for host in (0, 1, 6, 7, 8)}
    granted: dict[str, tuple[bytes, float]] = {}
    for what, number, host, passed in script:
        network.now += passed
        client, address = network.client(number), f"192.168.127.{host}"
        answer: Answer | None = None
        if what == "discover":
            answer = client.send("discover", ("requested_addr", address))
        elif what == "rapid":
            answer = client.send("discover", (80, b""))
        elif what == "select":
            answer = client.select(address)
        elif what == "reboot":
            answer = client.reboot(address)
        elif what == "renew":
            answer = client.renew(address)
        elif what == "release":
            client.release(address)
            if granted.get(address, (b"", 0.0))[0] == client.mac:
                del granted[address]
        elif what == "decline":
            client.decline(address)
            if granted.get(address, (b"", 0.0))[0] == client.mac:
                del granted[address]
        else:
            client.select(address, server="9.9.9.9")
        if answer is not None and answer.kind != "nak":
            assert answer.address not in forbidden
            assert (answer.address == "192.168.127.5") == (number == 1)
            holder, until = granted.get(answer.address, (client.mac, 0.0))
            assert holder == client.mac or until <= network.now
            if answer.kind == "ack":
                granted[answer.address] = (client.mac, network.now + 100)
        live = {address: who for address, (who, until) in granted.items() if until > network.now}
        listed = network.leases()
        assert len(set(listed.values())) == len(listed)
        assert live.items() <= listed.items()
        server = network.server
        tables = [*server._offers.items(), *server._leases.items(), *server._past.items()]
        assert {lease.address: owner for owner, lease in tables} == {
            address: lease.mac for address, lease in server._by_address.items()
        }
