"""Every backend that ships with the product keeps the contract, checked over real gRPC."""

from collections.abc import Callable

import pytest

from backends.registry import ENTRIES
from harness.client import Client
from harness.contract import CHECKS, check_address

OPTIONS = {name: {"steps": "2"} for name in ("sr3", "sr3-x4", "cdm-base", "cdm-32", "cdm-64")}
"""Options that keep a check short."""


@pytest.mark.parametrize("name", sorted(name for name, entry in ENTRIES.items() if not entry.settings))
def test_backend_keeps_the_contract(name: str, serve: Callable[[str], Client]) -> None:
    """No check of the contract kit finds anything wrong."""
    results = check_address(serve(name).address, OPTIONS.get(name))
    assert len(results) == len(CHECKS)
    assert [r for r in results if not r.passed] == []
