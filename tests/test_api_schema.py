"""The API answers as its description says, whatever it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aimemo import InMemoryCache
from aimemo.management import problems
from aimemo.management.api import create_app

schemathesis = pytest.importorskip("schemathesis", reason="an extra check: pip install schemathesis")

checks = pytest.importorskip("schemathesis.specs.openapi.checks")
CHECKS = [
    schemathesis.checks.not_a_server_error, checks.status_code_conformance,
    checks.content_type_conformance, checks.response_schema_conformance,
]  # fmt: skip
app = create_app(InMemoryCache(), api_keys=["key"])
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.fixture(scope="module", autouse=True)
def _quick_failures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "FAILURE_SECONDS", 0)
        yield


@pytest.mark.slow
@schema.parametrize()
def test_nothing_undocumented_and_no_crash(case: Any) -> None:
    case.call_and_validate(headers={"X-API-Key": "key"}, checks=CHECKS)
