"""Files of an output are what their readers take them for, on several threads as well."""

from __future__ import annotations

import gc
import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ray_pipeline.dataset.filesystem import StoreFileSystem
from ray_pipeline.store import Store
from tests.servers.ranges import RangeServer

CONTENT = np.random.default_rng(4).bytes(3 << 20)


@pytest.fixture(params=["file", "s3"])
def system(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StoreFileSystem]:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a").write_bytes(CONTENT)
    if request.param == "file":
        yield StoreFileSystem(Store.open(str(tmp_path / "bucket")))
        return
    with RangeServer(tmp_path, latency_ms=1.0) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield StoreFileSystem(Store.open("s3://bucket"))


def test_threads_share_a_file_as_duckdb_does(system: StoreFileSystem) -> None:
    file = system.open("a")

    def look(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            start, length = rng.randrange(len(CONTENT)), rng.choice((16, 5_000, 200_000))
            file.seek(start)
            assert file.read(length) == CONTENT[start : start + length]
            assert file.tell() == min(start + length, len(CONTENT))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(look, range(6)))


def test_it_is_a_file(system: StoreFileSystem) -> None:
    file = system.open("a")
    assert file.readable()
    assert file.seekable()
    assert file.seek(-5, io.SEEK_END) == len(CONTENT) - 5
    assert file.read() == CONTENT[-5:]
    assert file.read(1) == b""
    file.seek(10)
    assert file.seek(5, io.SEEK_CUR) == 15
    room = bytearray(7)
    assert file.readinto(room) == 7
    assert room == CONTENT[15:22]
    with pytest.raises(ValueError, match="before the start"):
        file.seek(-1)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    # Warnings are errors: one that is let go of is closed.
    system.open("a")
    gc.collect()
