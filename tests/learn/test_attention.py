"""Attention lies beside the embeddings and joins them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import torch

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.dataset.commit import commit_slide
from ray_pipeline.learn.attention import ATTENTION_COLUMNS, write_attention
from ray_pipeline.store import Store
from tests.dataset.conftest import staged_slide


def test_attention_joins_the_embeddings_by_tile(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    job = staged_slide("a/1 .", store=store, n_tiles=60)
    commit_slide(job)
    rows = pq.read_table(store.open_file(job.key))
    bag: Bag = {
        "slide_id": "a/1 .",
        "features": torch.zeros(60, 8),
        "coords": torch.from_numpy(np.stack([rows["x"], rows["y"]], axis=1)),
        "label": None,
    }
    attention = np.random.default_rng(0).dirichlet(np.ones(60)).astype(np.float32)
    write_attention(store, bag, attention[::-1])
    key = write_attention(store, bag, attention)
    assert pq.read_schema(store.open_file(key)).remove_metadata() == ATTENTION_COLUMNS
    found = duckdb.execute(
        f"select e.tile, a.attention, a.x = e.x and a.y = e.y as same "
        f"from '{tmp_path}/attention/*/attention.parquet' a "
        f"join '{tmp_path}/{job.key}' e using (slide_id, tile) order by tile"
    ).fetchnumpy()
    assert found["tile"].tolist() == list(range(60))
    assert found["same"].tolist() == [True] * 60
    assert np.array_equal(found["attention"], attention)
