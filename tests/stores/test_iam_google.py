"""The roles and policies for Google on a server that enforces them, one permission by the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ray_pipeline.errors import AccessError, NotFoundError
from ray_pipeline.store import Store
from tests.servers.google import Access, ServiceAccount
from tests.stores.policies import google_bindings, google_roles

SLIDES, OUTPUT = "gs://lab/slides", "gs://lab/results"
Act = Callable[[], object]
NEEDED: dict[tuple[str, str], Act] = {
    ("Reader", "storage.objects.list"): lambda: list(Store.open(SLIDES).list("deep")),
    ("Reader", "storage.objects.get"): lambda: Store.open(SLIDES).get_range("a.svs", 0, 1),
    ("Writer", "storage.objects.list"): lambda: list(Store.open(OUTPUT).list()),
    ("Writer", "storage.objects.get"): lambda: Store.open(OUTPUT).get("standing"),
    ("Writer", "storage.objects.create"): lambda: Store.open(OUTPUT).put(
        "new", b"", if_absent=True
    ),
    ("Writer", "storage.objects.delete"): lambda: Store.open(OUTPUT).delete(["cleared"]),
}
"""(role, permission) -> what is done by it."""


@pytest.fixture
def granted(google: Access) -> Access:
    """Slides and an output lie there, and the policies are those of the files."""
    (email,) = google.accounts
    google.roles["all"] = frozenset(permission for _, permission in NEEDED)
    google.bindings[""] = [{"role": "all", "members": [f"serviceAccount:{email}"]}]
    for root, key in ((SLIDES, "a.svs"), (SLIDES, "deep/b.svs"), (OUTPUT, "standing")):
        Store.open(root).put(key, b"0123456789")
    Store.open(OUTPUT).put("cleared", b"")
    Store.open("gs://lab").put("slides-private/c.svs", b"")
    google.roles = dict(google_roles())
    google.bindings = {
        "slides/": list(google_bindings("slides", email)),
        "results/": list(google_bindings("output", email)),
    }
    return google


def role(name: str) -> str:
    (full,) = [one for one in google_roles() if one.endswith(name)]
    return full


def test_the_roles_hold_what_is_needed_and_no_more(granted: Access) -> None:
    held = {
        (name.rpartition("historay")[2], permission)
        for name, permissions in granted.roles.items()
        for permission in permissions
    }
    assert held == set(NEEDED)
    for act in NEEDED.values():
        act()
    Store.open(OUTPUT).put("standing", b"replaced")


@pytest.mark.parametrize("missing", NEEDED, ids="-".join)
def test_one_permission_less_is_named(granted: Access, missing: tuple[str, str]) -> None:
    name, permission = missing
    granted.roles[role(name)] -= {permission}
    for each, act in NEEDED.items():
        if each != missing:
            act()
    with pytest.raises(AccessError) as refusal:
        NEEDED[missing]()
    where = SLIDES if name == "Reader" else OUTPUT
    assert str(refusal.value).startswith(f"{permission} on {where}")
    assert "is refused: grant it (infra/iam has policies)" in str(refusal.value)


def test_replacing_needs_the_permission_to_delete_as_google_itself_says(granted: Access) -> None:
    granted.roles[role("Writer")] -= {"storage.objects.delete"}
    with pytest.raises(AccessError, match=r"^storage.objects.delete on gs://lab/results/standing "):
        Store.open(OUTPUT).put("standing", b"other")


@pytest.mark.parametrize(
    "act",
    [
        lambda: list(Store.open("gs://lab").list()),
        lambda: list(Store.open("gs://lab").list("slides-private")),
        lambda: Store.open("gs://lab").get("slides-private/c.svs"),
        lambda: Store.open(SLIDES).put("a.svs", b""),
        lambda: Store.open(SLIDES).delete(["a.svs"]),
        lambda: Store.open("gs://lab").put("results-private/x", b""),
    ],
)
def test_nothing_more_is_granted(granted: Access, act: Act) -> None:
    del granted
    with pytest.raises(AccessError, match="is refused: grant it"):
        act()


def test_what_is_absent_is_not_found(granted: Access) -> None:
    del granted
    for root in (SLIDES, OUTPUT):
        with pytest.raises(NotFoundError):
            Store.open(root).get("absent")


def test_a_key_that_nobody_knows_is_told_from_a_missing_permission(
    granted: Access, account: ServiceAccount
) -> None:
    granted.accounts[account.email] = ServiceAccount(account.email)
    with pytest.raises(AccessError, match="does not take the credentials") as refusal:
        Store.open(SLIDES).get("a.svs")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(refusal.value)
    assert "PRIVATE KEY" not in str(refusal.value)
