"""The second act of the demonstration: the same guest under a list, and what it tries against it.

Allowed is `web_name`, on the ports of the web, and the network of `listed_address`. Each step that is refused has to be
refused the way a program understands at once: an address that leads nowhere, an alert, a 403, a reset, an ICMP error.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from functools import partial

from netstack.gateway.demo_guest import Act, Lease, Network, Plan, Step, TlsStream, fetch
from netstack.gateway.demo_quic import initial_datagram

SECRET_LABEL = "c2VjcmV0LWRhdGE"  # noqa: S105 - what a tunnel would carry, here the words "secret-data"


class OnlyListed(Act):
    """The second act."""

    def __init__(self, network: Network, plan: Plan, lease: Lease | None) -> None:
        """Goes on with the address the first act got."""
        super().__init__(network, plan)
        self.lease = lease

    def steps(self) -> Iterator[Step]:
        """Take them one by one."""
        plan = self.plan
        name, other, elsewhere = plan.web_name, plan.other_name, plan.other_address
        yield self.step("listed name", f"DNS A {name}", self._resolve_listed)
        if not self.address:
            return
        yield self.step("name not listed", f"DNS A {other}", partial(self._find_sinkhole, other))
        tunnel = f"{SECRET_LABEL}.{other}"
        yield self.step("DNS tunnel", f"DNS TXT {tunnel}", partial(self._find_nothing, tunnel))
        yield self._by_name(
            "HTTPS, listed name", f"https://{name}/", partial(self.fetch_securely, self.address, 443, name)
        )
        yield self._by_name(
            "its SNI, elsewhere", f"TLS {elsewhere}:443, SNI {name}", partial(self.fetch_securely, elsewhere, 443, name)
        )
        yield self.step("SNI not listed", f"TLS {self.address}:443, SNI {other}", partial(self._get_alert, other))
        yield self.step("Host not listed", f"HTTP {self.address}:80, Host {other}", partial(self._get_403, other))
        yield self.step(
            "QUIC, not listed", f"UDP {self.address}:443, SNI {other}", partial(self._get_unreachable_quic, other)
        )
        listed, port = plan.listed_address, plan.http_port
        yield self.step("listed network", f"HTTP {listed}:{port}", partial(self.fetch, listed, port, listed))
        yield self.step("address not listed", f"TCP {elsewhere}:22", partial(self.get_refused, elsewhere, 22))
        yield self.step("another resolver", f"UDP {elsewhere}:53", self._get_unreachable)
        yield self.step("ping, not listed", f"ICMP echo {elsewhere}", self._get_prohibited)

    def _by_name(self, name: str, asked: str, action: Callable[[], str]) -> Step:
        """A step that ends at our web servers by the name's rule, which means the web's own ports."""
        if (self.plan.http_port, self.plan.https_port) != (80, 443):
            return Step(
                name, asked, "left out: ports 80 and 443 are not to be had here without a namespace", "skipped", None
            )
        return self.step(name, asked, action)

    def _resolve_listed(self) -> str:
        rcode, found = self.resolve(self.plan.web_name)
        if not found:
            raise ValueError(f"{rcode} without an address")
        self.address = found[0]
        return f"{rcode}, {', '.join(found)}"

    def _find_sinkhole(self, name: str) -> str:
        rcode, found = self.resolve(name)
        if (rcode, found) != ("NOERROR", ["0.0.0.0"]):
            raise ValueError(f"{rcode}, {found}, expected 0.0.0.0")
        return "NOERROR, 0.0.0.0 (a sinkhole)"

    def _find_nothing(self, name: str) -> str:
        rcode, found = self.resolve(name, "TXT")
        if (rcode, found) != ("NOERROR", []):
            raise ValueError(f"{rcode}, {found}, expected no record")
        return "NOERROR, no record"

    def _get_alert(self, name: str) -> str:
        context = ssl.create_default_context(cafile=self.plan.certificate)
        try:
            TlsStream(self.network.connect(self.address, 443), context, name)
        except ssl.SSLError as error:
            if error.reason != "TLSV1_UNRECOGNIZED_NAME":
                raise
            return "TLS alert: unrecognized name (112)"
        raise ValueError("the handshake was completed")

    def _get_403(self, name: str) -> str:
        status, body = fetch(self.network.connect(self.address, 80), name)
        if status != 403:
            raise ValueError(f"{status}, expected 403")
        return f"403, {body.decode().strip()}"

    def _get_unreachable_quic(self, name: str) -> str:
        return self._send_refused(self.address, 443, initial_datagram(name))

    def _get_unreachable(self) -> str:
        return self._send_refused(self.plan.other_address, 53, bytes(12))

    def _send_refused(self, address: str, port: int, payload: bytes) -> str:
        try:
            self.network.exchange_datagram(address, port, payload)
        except ConnectionRefusedError:
            return "ICMP port unreachable"
        raise ValueError("the datagram was answered")

    def _get_prohibited(self) -> str:
        try:
            self.network.ping(self.plan.other_address, bytes(range(48)))
        except ConnectionRefusedError as error:
            return str(error).replace("code 13", "prohibited")
        raise ValueError("no word of it")
