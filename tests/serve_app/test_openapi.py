"""The API is described as it was reviewed; `python -m tests.serve_app.test_openapi` rewrites it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.serve_app.serving import HeldFleet, api_over, service_over

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "openapi.json"


def described() -> dict[str, Any]:
    document = api_over(service_over(HeldFleet())).openapi()
    # A release changes it, and nothing else of the API.
    document["info"].pop("version")
    return document


def test_the_api_is_as_it_was_reviewed() -> None:
    assert described() == json.loads(GOLDEN.read_text())


def test_every_route_but_two_asks_for_a_token_and_tells_its_errors() -> None:
    for path, methods in described()["paths"].items():
        for operation in methods.values():
            is_open = path in ("/health", "/ready")
            assert ("security" in operation) != is_open, path
            assert ("429" in operation["responses"]) != is_open, path


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(described(), indent=2) + "\n")
