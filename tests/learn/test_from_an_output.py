"""From committed files to what is learnt from them: bags for slides, samples for tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.dataset.reading import EmbeddingDataset, open_dataset
from ray_pipeline.learn.attention import attention_key
from ray_pipeline.learn.cohort import Cohort
from ray_pipeline.learn.evaluation import cross_validated
from ray_pipeline.learn.probe import probe
from ray_pipeline.store import Store
from tests.dataset.outputs import make_output
from tests.learn.cohorts import DIM, Planted, planted_cohort
from tests.learn.test_evaluation import QUICK


@pytest.fixture(scope="module")
def planted() -> Planted:
    return planted_cohort(0, patients=16)


@pytest.fixture
def dataset(planted: Planted, tmp_path: Path) -> EmbeddingDataset:
    features, cohort = planted.features, planted.cohort
    make_output(
        str(tmp_path / "out"),
        {slide: len(vectors) for slide, vectors in features.items()},
        dim=DIM,
        attributes={
            slide: {"patient": patient, "diagnosis": cohort.classes[target]}
            for slide, patient, target in zip(
                cohort.slides, cohort.patients, cohort.targets, strict=True
            )
        },
        vectors=features,
    )
    return open_dataset(str(tmp_path / "out"))


@pytest.mark.slow
def test_abmil_learns_from_the_bags_of_an_output(
    planted: Planted, dataset: EmbeddingDataset
) -> None:
    table = dataset.slides().to_pylist()
    labels = {row["slide_id"]: row["diagnosis"] for row in table}
    cohort = Cohort.of(labels, {row["slide_id"]: row["patient"] for row in table})

    def bags(slides: Sequence[str]) -> DataLoader[Bag]:
        return DataLoader(dataset.torch_bags(slides, labels), batch_size=None)

    learnt = Store.open(f"{dataset.output.uri}/learnt")
    report = cross_validated(cohort, bags, folds=4, training=QUICK, attention_to=learnt)
    assert report.by == "patient"
    assert report.scores.auc.value >= 0.9
    found = []
    for slide, tiles in planted.planted.items():
        file = learnt.open_file(attention_key(slide))
        rows = pq.read_table(file).sort_by([("attention", "descending")])
        found.append(len(set(rows["tile"].to_pylist()[: len(tiles)]) & set(tiles)) / len(tiles))
    assert np.mean(found) >= 0.7  # by chance, some 0.04


def test_a_probe_learns_from_a_sample_of_an_output(
    planted: Planted, dataset: EmbeddingDataset
) -> None:
    tiles = dataset.sample(400, by="slide_id").to_pylist()  # that is all of them
    wanted = {(slide, tile) for slide, ones in planted.planted.items() for tile in ones}
    assert len(tiles) == sum(map(len, planted.features.values()))
    told = [(row["slide_id"], row["tile"]) in wanted for row in tiles]
    kept = [n for n, row in enumerate(tiles) if told[n] or row["tile"] % 20 == 0]
    report = probe(
        np.array([tiles[n]["embedding"] for n in kept], np.float32),
        [("normal", "tumour")[told[n]] for n in kept],
        [tiles[n]["slide_id"].rpartition("-")[0] for n in kept],
    )
    assert report.scores.balanced_accuracy.value >= 0.9
