"""Slides on public web servers: read by ranges, over HTTPS, redirects and all; never written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar

import pytest

from ray_pipeline import store as store_module
from ray_pipeline.errors import AccessError, SettingsError, UnreachableError
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.sources import find_slides
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.servers.memory import MemoryBucket, serving
from tests.servers.tls import https

DATA = b"0123456789"


class _Redirecting(MemoryBucket):
    target: ClassVar[str]

    def read(self) -> None:
        """Send the client elsewhere, or away."""
        if self.path.startswith("/private/"):
            return self.answer(HTTPStatus.FORBIDDEN)
        return self.answer(HTTPStatus.FOUND, headers={"Location": self.target + self.path})


@pytest.fixture(autouse=True)
def trusted(authority: tuple[Path, Path], unset: pytest.MonkeyPatch) -> None:
    unset.setenv("SSL_CERT_FILE", str(authority[0]))
    unset.setattr(store_module, "LONGEST_PAUSE_S", 0.01)


@pytest.fixture
def mirror(authority: tuple[Path, Path]) -> Iterator[tuple[str, str]]:
    """The same object over (HTTP, HTTPS)."""
    with (
        serving(MemoryBucket, objects={"x.svs": (1, DATA)}) as plain,
        https(plain, authority[1]) as secure,
    ):
        yield plain, secure


@contextmanager
def redirecting(target: str, authority: tuple[Path, Path]) -> Iterator[str]:
    """A server over HTTPS that sends everybody to `target`."""
    with serving(_Redirecting, target=target) as server, https(server, authority[1]) as url:
        yield url


def test_a_slide_is_read_where_it_lies(web_folder: Path, web_server: str) -> None:
    (web_folder / "lab").mkdir()
    write_slide(web_folder / "lab" / "a slide.svs", width_px=1024, height_px=1024, seed=1)
    for uri in (f"{web_server}/lab/a%20slide.svs", f"{web_server}/lab/a slide.svs"):
        (source,) = find_slides([uri])
        assert source.uri == f"{web_server}/lab/a%20slide.svs"
        slide = open_slide(source.uri, etag=source.etag)
        assert (slide.slide_id, source.slide_id) == ("a slide", "a slide")
        assert slide.levels[0].width_px == 1024


def test_redirects_are_followed_within_https(
    mirror: tuple[str, str], authority: tuple[Path, Path]
) -> None:
    with redirecting(mirror[1], authority) as url:
        store = Store.open(f"{url}/bucket")
        info = store.head("x.svs")
        assert info.size_bytes == len(DATA)
        assert bytes(store.get_range("x.svs", 3, 4, etag=info.etag)) == b"3456"


def test_redirects_out_of_https_are_not(
    mirror: tuple[str, str], authority: tuple[Path, Path]
) -> None:
    with redirecting(mirror[0], authority) as url, pytest.raises(UnreachableError):
        Store.open(f"{url}/bucket").get_range("x.svs", 3, 4)


def test_a_refusal_names_the_object(mirror: tuple[str, str], authority: tuple[Path, Path]) -> None:
    with redirecting(mirror[1], authority) as url:
        refused = rf"{url}/private/x\.svs refused to read: check the web server"
        with pytest.raises(AccessError, match=refused):
            Store.open(f"{url}/private").head("x.svs")


def test_nothing_is_written_to_the_web(web_server: str, tmp_path: Path) -> None:
    store = Store.open(f"{web_server}/out")
    (tmp_path / "local").write_bytes(b"")
    for act in (
        lambda: store.put("x", b""),
        lambda: store.put_file("x", tmp_path / "local"),
        lambda: store.delete(["x"]),
    ):
        with pytest.raises(SettingsError, match=f"{web_server}/out/x: web servers are only read"):
            act()
    with pytest.raises(SettingsError, match="web servers can't be listed: name each slide"):
        list(store.list())
