"""What every store is asked for, on a server of each kind; the README's table is what was seen."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from ray_pipeline import store as store_module
from ray_pipeline.errors import (
    NotFoundError,
    ObjectReplacedError,
    PreconditionError,
    SettingsError,
)
from ray_pipeline.store import Store
from tests.stores.conftest import Place

DATA = random.Random(11).randbytes(300_000)
KEYS = ["deep/er/ä (1).svs", "deep/x.svs", "deeper/y.svs"]
README = Path(__file__).resolve().parents[2] / "README.md"
YES, NO = "yes", "no"


def test_objects_are_found_and_read_in_one_version(place: Place) -> None:
    for key in KEYS:
        place.lay(key, DATA)
    store = Store.open(place.root)
    for key in KEYS:
        info = store.head(key)
        assert (info.key, info.size_bytes) == (key, len(DATA))
        assert info.etag
        assert store.get_range(key, 1000, 70_000, etag=info.etag) == DATA[1000:71_000]
        assert store.get_range(key, len(DATA) - 1, 1) == DATA[-1:]
        with store.open_file(key) as file:
            file.seek(200_000)
            assert file.read() == DATA[200_000:]
        assert store.get(key) == DATA
        with pytest.raises(ObjectReplacedError, match="was replaced while it was read"):
            store.get_range(key, 0, 10, etag="0123456789abcdef")


def test_what_is_absent_is_not_found(place: Place) -> None:
    place.lay(KEYS[0], DATA)
    store = Store.open(place.root)
    for absent in ("deep/absent.svs", "absent/x.svs"):
        for ask in (store.head, store.get, lambda key: store.get_range(key, 0, 1)):
            with pytest.raises(NotFoundError, match=f"{absent} does not exist"):
                ask(absent)


def test_the_readme_says_what_was_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in KEYS:
        place.lay(key, DATA)
    store = Store.open(place.root)
    seen = {
        "list": _list(store),
        "read one version": _read_one_version(place, store),
        "put if absent": _put_if_absent(store),
        "replace one version": _replace_one_version(store, monkeypatch),
        "delete": _delete(store),
    }
    assert _told(place.row) == seen


def _list(store: Store) -> str:
    try:
        assert sorted(info.key for info in store.list()) == KEYS
    except SettingsError:
        return NO
    sizes = {info.key: (info.size_bytes, info.etag) for info in store.list("deep")}
    assert sizes == {key: (len(DATA), store.head(key).etag) for key in KEYS[:2]}
    assert (store.folders(), store.folders("deep")) == (["deep", "deeper"], ["er"])
    return YES


def _read_one_version(place: Place, store: Store) -> str:
    old = store.head(KEYS[0]).etag
    place.lay(KEYS[0], DATA[::-1])
    new = store.head(KEYS[0]).etag
    assert store.get_range(KEYS[0], 5, 5, etag=new) == DATA[::-1][5:10]
    with pytest.raises(ObjectReplacedError):
        store.get_range(KEYS[0], 5, 5, etag=old)
    return YES


def _put_if_absent(store: Store) -> str:
    try:
        store.put("new", b"first", if_absent=True)
    except SettingsError:
        return NO
    with pytest.raises(PreconditionError):
        store.put("new", b"second", if_absent=True)
    assert store.get("new") == b"first"
    return YES


def _replace_one_version(store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    try:
        first = store.put("replaced", b"first")
    except SettingsError:
        return NO
    second = store.put("replaced", b"second!", if_match=first)
    with pytest.raises(PreconditionError):
        store.put("replaced", b"third", if_match=first)
    assert store.get("replaced") == b"second!"
    # Somebody else is quicker, after all that was asked and before our bytes are there.
    put = obstore.put

    def after_another(backend: Any, path: str, data: bytes, **said: Any) -> Any:
        put(backend, path, b"another's", use_multipart=False)
        return put(backend, path, data, **said)

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", after_another)
        try:
            store.put("replaced", b"ours", if_match=second)
        except PreconditionError:
            assert store.get("replaced") == b"another's"
            return YES
    return "compared just before"


def _delete(store: Store) -> str:
    try:
        store.delete([*KEYS, "absent"])
    except SettingsError:
        return NO
    assert {info.key for info in store.list()} <= {"new", "replaced"}
    store.delete(["new"])
    with pytest.raises(NotFoundError):
        store.head("new")
    return YES


def test_a_long_file_is_put_in_parts(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PART_BYTES", 5 << 20)  # S3 takes no smaller ones
    store, data = Store.open(place.root), random.Random(3).randbytes((11 << 20) + 7)
    (tmp_path / "local").write_bytes(data)
    if place.folder is not None:
        with pytest.raises(SettingsError, match="web servers are only read"):
            store.put_file("long", tmp_path / "local")
        return
    store.put_file("long", tmp_path / "local")
    assert store.get("long") == data


def _table() -> Iterator[list[str]]:
    section = README.read_text().split("## Which stores")[1].split("\n## ")[0]
    for line in re.findall(r"^\| (.+) \|$", section, re.MULTILINE):
        yield [cell.strip() for cell in line.split("|")]


def _told(row: str) -> dict[str, str]:
    """What the README says of one kind of store."""
    head, *rows = _table()
    (cells,) = [cells for cells in rows if cells[0] == row]
    return dict(zip(head[1:], cells[1:], strict=True))
