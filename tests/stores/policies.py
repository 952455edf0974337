"""The policies of `infra/iam`, filled in as a user would, whole or with one permission fewer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "iam"
PROJECT = "lab"


def filled(name: str, words: Mapping[str, str]) -> dict[str, Any]:
    """The file of that name with every placeholder replaced."""
    text = (FOLDER / name).read_text()
    for placeholder, word in words.items():
        text = text.replace(placeholder, word)
    policy: dict[str, Any] = json.loads(text)
    return policy


def permissions(policy: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(statement, action) of a policy of S3's kind."""
    return {(one["Sid"], action) for one in policy["Statement"] for action in one["Action"]}


def without(policy: Mapping[str, Any], sid: str, action: str) -> dict[str, Any]:
    """The same but for one action; a statement that has no other goes."""
    less = [
        {**one, "Action": [each for each in one["Action"] if (one["Sid"], each) != (sid, action)]}
        for one in policy["Statement"]
    ]
    return {**policy, "Statement": [one for one in less if one["Action"]]}


def google_roles() -> dict[str, frozenset[str]]:
    """The custom roles by their full names."""
    return {
        f"projects/{PROJECT}/roles/historay{name.title()}": frozenset(
            filled(f"gcs-{name}-role.json", {})["includedPermissions"]
        )
        for name in ("reader", "writer")
    }


def google_bindings(folder: str, email: str) -> list[dict[str, Any]]:
    """The bindings of one managed folder: `slides` or `output`."""
    policy = filled(f"gcs-{folder}-policy.json", {"PROJECT": PROJECT, "ACCOUNT": email})
    bindings: list[dict[str, Any]] = policy["bindings"]
    return bindings
