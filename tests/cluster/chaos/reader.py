"""A stranger who reads the output with DuckDB all the time, and expects whole slides only."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random

import duckdb
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers.s3 import S3Server

EVERY_S = 1.0
"""Pause between two looks."""
LOOKS = 3
"""At each file when it is new; later it is among those that are drawn."""
DRAWN = 15
"""Older files in each look."""
NO_ANSWER = (duckdb.IOException, duckdb.HTTPException, OSError, BotoCoreError, ClientError)
"""What a gateway that is down gives."""


class PollingReader(threading.Thread):
    """Counts the rows of each slide, straight at the gateway, again and again until it is ended."""

    def __init__(
        self, server: S3Server, output: str, planned: Mapping[str, int], seed: int
    ) -> None:
        """`output`: the job's; `planned`: the rows that a slide has to have once it has any."""
        super().__init__(name="reader", daemon=True)
        self.looks = 0
        """Queries that were answered."""
        self.slides_read = 0
        """Slides in them, each as often as it was read."""
        self.unanswered = 0
        """Queries that the gateway did not answer."""
        self.partial: list[str] = []
        """Sightings of slides with other rows than planned, or of files that are not whole."""
        self.replaced: set[str] = set()
        """Files that were seen in two versions."""
        self.newest_at = 0.0
        """When a file was seen for the first time, the last time that happened (monotonic)."""
        self.error: BaseException | None = None
        """What ended it before its time."""
        self._embeddings = f"{output.removeprefix('s3://')}/embeddings"
        self._planned, self._random = planned, Random(f"{seed} reader")
        self._looked: Counter[str] = Counter()
        self._versions: dict[str, str] = {}
        self._ended = threading.Event()
        self._files = s3fs.S3FileSystem(
            key=server.access_key,
            secret=server.secret_key,
            endpoint_url=server.endpoint_url,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"s3": {"addressing_style": "path"}},
        )

    def run(self) -> None:
        try:
            with duckdb.connect() as database:
                database.register_filesystem(self._files)
                database.execute("set enable_external_file_cache = false")
                while not self._ended.wait(EVERY_S):
                    try:
                        self._look(database, self._chosen(self._listed()))
                    except NO_ANSWER:
                        self.unanswered += 1
                self._look(database, self._listed())
        except BaseException as error:  # noqa: BLE001 (told by `end`)
            self.error = error

    def end(self) -> None:
        """Read everything once more, and no more. Raises what went wrong meanwhile."""
        self._ended.set()
        self.join()
        if self.error is not None:
            raise self.error

    @property
    def files(self) -> int:
        """How many slides there are at the moment."""
        return len(self._versions)

    def _listed(self) -> list[str]:
        # s3fs tells of the folder itself where its first file comes between two of its requests.
        everything = self._files.find(self._embeddings, detail=True)
        found = {name: info for name, info in everything.items() if info["type"] == "file"}
        for name, info in found.items():
            etag = str(info["ETag"])
            if name not in self._versions:
                self._versions[name], self.newest_at = etag, time.monotonic()
            elif self._versions[name] != etag:
                self.replaced.add(name)
        return sorted(found)

    def _chosen(self, files: Sequence[str]) -> list[str]:
        new = [name for name in files if self._looked[name] < LOOKS]
        old = [name for name in files if self._looked[name] >= LOOKS]
        return new + self._random.sample(old, min(DRAWN, len(old)))

    def _look(self, database: duckdb.DuckDBPyConnection, files: Sequence[str]) -> None:
        if not files:
            return
        try:
            counted = database.execute(
                "select filename, min(slide_id), max(slide_id), count(*), count(distinct tile) "
                "from read_parquet($files, filename = true) group by all",
                {"files": [f"s3://{name}" for name in files]},
            ).fetchall()
        except duckdb.InvalidInputException as error:
            self.partial.append(str(error))
            return
        self.looks += 1
        self.slides_read += len(files)
        self._looked.update(files)
        rows = {name: count for name, _, _, count, _ in counted}
        for name, first, last, count, tiles in counted:
            if not (first == last and count == tiles == self._planned.get(first)):
                self.partial.append(f"{name}: {count} rows of {first} to {last}")
        for name in files:  # a file without rows is in no group
            planned = self._planned.get(name.split("/slide=")[-1].split("/")[0])
            if f"s3://{name}" not in rows and planned != 0:
                self.partial.append(f"{name}: no rows")
