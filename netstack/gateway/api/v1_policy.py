"""`/v1/policy`: read back what is enforced, replace it whole, and the kill switch."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from fastapi import APIRouter, HTTPException

from netstack import api_models as models
from netstack.network_spec import NetworkSpec

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway


def router(gateway: Gateway) -> APIRouter:
    """All of it."""
    made = APIRouter(prefix="/v1/policy", tags=["policy"])
    judge = gateway.driver.stack.judge

    def in_force(warnings: list[str] | None = None) -> models.Policy:
        spec = asdict(gateway.policy)
        return models.Policy(
            generation=judge.generation,
            access=judge.policy.access,
            killed=gateway.killed,
            spec=models.PolicySpec(**{**spec, "allow_net": list(spec["allow_net"])}),
            warnings=warnings or [],
        )

    @made.get("")
    async def show() -> models.Policy:
        """The policy in force."""
        return in_force()

    @made.put("")
    async def replace(spec: models.PolicySpec) -> models.Policy:
        """Put another in force, whole or not at all: flows that it would refuse are reset. It lifts the kill switch."""
        try:
            wanted = NetworkSpec.parse(spec.model_dump())
        except ValueError as problem:
            raise HTTPException(422, str(problem)) from None
        return in_force(await gateway.replace_policy(wanted))

    @made.post("/kill")
    async def kill() -> models.Policy:
        """The kill switch: every flow is reset, and nothing is allowed in or out until it is lifted."""
        gateway.kill_network()
        return in_force()

    @made.post("/lift")
    async def lift() -> models.Policy:
        """End the kill switch: the policy that was in force before is in force again."""
        if not gateway.lift_kill_switch():
            raise HTTPException(409, "the kill switch is not on")
        return in_force()

    return made
