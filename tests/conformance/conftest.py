"""Fixtures of the conformance tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .policy_wire import PolicyWire


@pytest.fixture(params=[True, False], ids=["verified", "trusted"])
def guest(request: pytest.FixtureRequest) -> Callable[..., PolicyWire]:
    """`guest(*rules)`: a guest under a list, with checksums verified (the long way in) and not (the quick way)."""

    def make(*rules: str, **options: object) -> PolicyWire:
        return PolicyWire(*rules, verify=request.param, **options)

    return make
