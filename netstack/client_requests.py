"""Every request a client makes, not sent yet: what to ask, and what the answer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

from netstack.network_spec import NetworkSpec

if TYPE_CHECKING:
    from netstack import api_models as models

Answer = TypeVar("Answer")


class Request(NamedTuple, Generic[Answer]):
    """What to ask, and what the answer is: an annotation that pydantic reads, out of `netstack.api_models`."""

    method: str
    path: str
    answer: str = ""
    query: dict[str, Any] | None = None
    body: Any = None


class Requests:
    """Every request there is, not sent yet."""

    @staticmethod
    def info() -> Request[models.Info]:
        """What is running."""
        return Request("GET", "/v1/info", "Info")

    @staticmethod
    def flows(state: str, protocol: str, guest: str, name: str, limit: int) -> Request[models.Flows]:
        """Flows, open and over."""
        query = {"state": state, "protocol": protocol, "guest": guest, "name": name, "limit": limit}
        return Request("GET", "/v1/flows", "Flows", query)

    @staticmethod
    def flow(number: int) -> Request[models.Flow]:
        """One flow."""
        return Request("GET", f"/v1/flows/{number}", "Flow")

    @staticmethod
    def end_flow(number: int) -> Request[None]:
        """End an open flow."""
        return Request("DELETE", f"/v1/flows/{number}")

    @staticmethod
    def questions(name: str, guest: str, limit: int) -> Request[list[models.Question]]:
        """DNS questions."""
        return Request("GET", "/v1/dns", "list[Question]", {"name": name, "guest": guest, "limit": limit})

    @staticmethod
    def policy() -> Request[models.Policy]:
        """The policy in force."""
        return Request("GET", "/v1/policy", "Policy")

    @staticmethod
    def replace_policy(spec: NetworkSpec) -> Request[models.Policy]:
        """Another in its place."""
        body = {
            "network": spec.network,
            "allow_net": list(spec.allow_net),
            "deny_all": spec.deny_all,
            "sinkhole": spec.sinkhole,
            "answers": spec.answers,
            "pass_service_bindings": spec.pass_service_bindings,
            "strict_ech": spec.strict_ech,
        }
        return Request("PUT", "/v1/policy", "Policy", body=body)

    @staticmethod
    def kill() -> Request[models.Policy]:
        """The kill switch."""
        return Request("POST", "/v1/policy/kill", "Policy")

    @staticmethod
    def lift() -> Request[models.Policy]:
        """Its end."""
        return Request("POST", "/v1/policy/lift", "Policy")

    @staticmethod
    def leases() -> Request[list[models.Lease]]:
        """DHCP leases."""
        return Request("GET", "/v1/leases", "list[Lease]")

    @staticmethod
    def neighbours() -> Request[list[models.Neighbour]]:
        """Addresses and their MACs."""
        return Request("GET", "/v1/neighbours", "list[Neighbour]")

    @staticmethod
    def links() -> Request[list[models.Link]]:
        """The guests' links."""
        return Request("GET", "/v1/links", "list[Link]")

    @staticmethod
    def counters() -> Request[models.Counters]:
        """Totals."""
        return Request("GET", "/v1/counters", "Counters")

    @staticmethod
    def statistics() -> Request[dict[str, Any]]:
        """gvproxy's."""
        return Request("GET", "/stats", "dict[str, Any]")

    @staticmethod
    def zones() -> Request[list[models.Zone]]:
        """Local DNS zones."""
        return Request("GET", "/v1/zones", "list[Zone]")

    @staticmethod
    def put_zone(name: str, addresses: dict[str, str], default_ip: str) -> Request[models.Zone]:
        """One in place, whole."""
        records = [{"name": record, "ip": address} for record, address in addresses.items()]
        body = {"records": records, "default_ip": default_ip}
        return Request("PUT", f"/v1/zones/{quote(name, safe='')}", "Zone", body=body)

    @staticmethod
    def remove_zone(name: str) -> Request[None]:
        """One forgotten."""
        return Request("DELETE", f"/v1/zones/{quote(name, safe='')}")

    @staticmethod
    def forwards() -> Request[list[models.ForwardSpec]]:
        """Port forwards."""
        return Request("GET", "/v1/forwards", "list[ForwardSpec]")

    @staticmethod
    def expose(local: str, remote: str, protocol: str) -> Request[models.ForwardSpec]:
        """One more."""
        body = {"local": local, "remote": remote, "protocol": protocol}
        return Request("POST", "/v1/forwards", "ForwardSpec", body=body)

    @staticmethod
    def unexpose(local: str, protocol: str, close_flows: bool) -> Request[None]:
        """One less."""
        query = {"local": local, "protocol": protocol, "close_flows": str(close_flows).lower()}
        return Request("DELETE", "/v1/forwards", query=query)

    @staticmethod
    def captures() -> Request[list[dict[str, Any]]]:
        """Captures that are running."""
        return Request("GET", "/v1/capture", "list[dict[str, Any]]")

    @staticmethod
    def start_capture(file: str, text: str, snaplen: int | None) -> Request[dict[str, int]]:
        """One more, into a file."""
        body = {"file": file, "filter": text or None, "snaplen": snaplen}
        return Request("POST", "/v1/capture", "dict[str, int]", body=body)

    @staticmethod
    def stop_capture(number: int) -> Request[None]:
        """One less."""
        return Request("DELETE", f"/v1/capture/{number}")
