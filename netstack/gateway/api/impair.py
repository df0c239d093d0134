"""`/v1/impair`: the impairments and faults in force, read and replaced as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from guest_iface.frame_filter import FilterError
from netstack.impairments import parse_impairments

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway


class ImpairmentState(BaseModel):
    """One that is in force."""

    spec: str = Field(description="In words; it can be put in force again as it is.")
    counts: dict[str, int] = Field(description="Frames, flows or questions so far: seen, and what became of them.")


class Impairments(BaseModel):
    """All that are in force, those of links in their order, then faults of streams and of DNS in theirs."""

    impairments: list[ImpairmentState]


class WantedImpairments(BaseModel):
    """What is to be in force instead."""

    impairments: list[str | dict[str, Any]] = Field(
        description="Texts such as 'dir=to-guest delay 50ms loss 1% seed 7', or mappings of their words."
    )


def router(gateway: Gateway) -> APIRouter:
    """The paths of one gateway."""
    made = APIRouter(prefix="/v1/impair", tags=["impairments"])
    wires = gateway.wires

    @made.get("")
    async def show() -> Impairments:
        """What is in force, with seeds and counts."""
        pairs = zip(wires.impairments, wires.counts(), strict=True)
        return Impairments(impairments=[ImpairmentState(spec=str(each), counts=counts) for each, counts in pairs])

    @made.put("")
    async def replace(wanted: WantedImpairments) -> Impairments:
        """Put these in force and no others: all of them, or, with status 400 and the reason, none."""
        try:
            wires.impair(parse_impairments(wanted.impairments, "impairments"))
        except (FilterError, ValueError) as error:
            raise HTTPException(400, str(error)) from error
        return await show()

    @made.delete("")
    async def clear() -> Impairments:
        """Take all out. Frames that wait go on at once."""
        wires.impair(())
        return await show()

    return made
