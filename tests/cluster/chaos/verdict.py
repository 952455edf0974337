"""What came of it all: the output against the truth, row by row."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from tests.cluster.chaos.slides import Truth
from tests.servers.s3 import S3Server

LEAST_COSINE = 0.9999
"""Between a vector and the true one."""


@dataclass(kw_only=True)
class Verdict:
    """Rows of the whole output."""

    slides: int
    """That should be there."""
    files: int = 0
    """Of embeddings."""
    slides_without_file: int = 0
    slides_with_more_files: int = 0
    rows_expected: int = 0
    rows_found: int = 0
    rows_lost: int = 0
    """Tiles of the truth that no row holds."""
    rows_duplicate: int = 0
    """Rows of a slide and a tile that another row holds."""
    rows_wrong: int = 0
    """Rows of no tile of the truth, or with other coordinates or another vector."""
    vectors_equal: int = 0
    """Rows whose vector is the true one bit for bit."""


def judge(server: S3Server, output: str, truths: Mapping[str, Truth]) -> Verdict:
    """Read every file under `<output>/embeddings/` with pyarrow, straight at the gateway."""
    bucket, _, prefix = output.removeprefix("s3://").partition("/")
    client = server.client()
    verdict = Verdict(slides=len(truths), rows_expected=sum(len(t.xy) for t in truths.values()))
    seen: Counter[tuple[str, int]] = Counter()
    files: Counter[str] = Counter()
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=f"{prefix}/embeddings/"
    )
    for page in pages:
        for entry in page.get("Contents", []):
            body = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            folder = entry["Key"].split("/slide=")[-1].split("/")[0]
            verdict.files += 1
            files[folder] += 1
            _judge_file(verdict, body, folder, truths, seen)
    client.close()
    verdict.rows_found = seen.total()
    verdict.rows_duplicate = seen.total() - len(seen)
    verdict.rows_lost = sum(
        (slide, tile) not in seen for slide, true in truths.items() for tile in range(len(true.xy))
    )
    verdict.slides_without_file = sum(slide not in files for slide in truths)
    verdict.slides_with_more_files = sum(count > 1 for count in files.values())
    return verdict


def _judge_file(
    verdict: Verdict,
    body: bytes,
    folder: str,
    truths: Mapping[str, Truth],
    seen: Counter[tuple[str, int]],
) -> None:
    table = pq.read_table(io.BytesIO(body))
    slides, tiles = table["slide_id"].to_pylist(), table["tile"].to_numpy()
    seen.update(zip(slides, tiles.tolist(), strict=True))
    true = truths.get(folder)
    if true is None or set(slides) - {folder}:
        verdict.rows_wrong += len(slides)
        return
    known = (tiles >= 0) & (tiles < len(true.xy))
    xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)[known]
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    vectors = flat.reshape(len(tiles), -1)[known] if len(tiles) else true.vectors[:0]
    wanted = true.vectors[tiles[known]]
    right = (xy == true.xy[tiles[known]]).all(axis=1) & (_cosines(vectors, wanted) >= LEAST_COSINE)
    verdict.rows_wrong += len(tiles) - int(right.sum())
    verdict.vectors_equal += int((vectors == wanted).all(axis=1).sum())


def _cosines(
    ours: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    a, b = ours.astype(np.float64), wanted.astype(np.float64)
    cosines: npt.NDArray[np.float64] = (a * b).sum(axis=1) / (
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    )
    return cosines
