"""The reader of the chaos, where a file comes while it looks."""

from __future__ import annotations

import io
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.cluster.chaos.reader import PollingReader
from tests.servers.s3 import S3Server


def test_the_first_file_may_come_in_the_middle_of_a_look(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket()
    shard = io.BytesIO()
    pq.write_table(pa.table({"slide_id": ["a", "a"], "tile": [0, 1]}), shard)
    listed = s3fs.S3FileSystem._lsdir
    lists = 0

    async def list_and_commit(self: s3fs.S3FileSystem, *args: object, **kwargs: object) -> object:
        """An empty list, and a commit: s3fs then asks for the file itself, and finds a folder."""
        nonlocal lists
        lists += 1
        found = await listed(self, *args, **kwargs)
        if lists == 1:
            s3.client().put_object(
                Bucket=bucket.removeprefix("s3://"),
                Key="out/embeddings/part=0/slide=a/embeddings.parquet",
                Body=shard.getvalue(),
            )
        return found

    monkeypatch.setattr(s3fs.S3FileSystem, "_lsdir", list_and_commit)
    reader = PollingReader(s3, f"{bucket}/out", {"a": 2}, seed=0)
    reader.start()
    while lists < 2 and reader.is_alive():
        time.sleep(0.1)
    reader.end()
    assert reader.files == 1
    assert reader.slides_read > 0
    assert reader.unanswered == 0
    assert not reader.partial
    assert not reader.replaced
