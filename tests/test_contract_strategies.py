"""Every strategy that comes with clbench keeps the contract, or says why it cannot."""

from __future__ import annotations

from clbench import registry
from clbench.testing import parametrize_with_checks

OURS = [e.name for e in registry.listing(registry.STRATEGIES) if e.package == "clbench"]


@parametrize_with_checks(OURS)
def test_contract(check):
    check()
