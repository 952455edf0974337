"""Cross-validated ABMIL finds a planted signal and where it is, and nothing where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, IterableDataset

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.errors import LabelsError
from ray_pipeline.learn.attention import attention_key
from ray_pipeline.learn.evaluation import Report, cross_validated
from ray_pipeline.learn.training import Training
from ray_pipeline.store import Store
from tests.learn.cohorts import Planted, planted_cohort, tiny_cohort

SEEDS = (0, 1, 2)
QUICK = Training(
    hidden=32, attention=16, learning_rate=5e-3, least_epochs=4, most_epochs=10, patience=3
)
BRIEF = Training(hidden=4, attention=4, least_epochs=1, most_epochs=2)


def chance_band(report: Report) -> float:
    """How far from 0.5 an AUC of scores that mean nothing comes in one of a hundred cohorts.

    Within a fold of p and n patients of each class, its variance is that of Mann and Whitney's U,
    (p + n + 1) / (12 p n); folds weigh as their pairs. Slides of one patient count as one.
    """
    pairs, spread = 0, 0.0
    for fold in range(report.folds):
        of = {slide.patient: slide.label for slide in report.slides if slide.fold == fold}
        p = sum(label == report.classes[1] for label in of.values())
        n = len(of) - p
        pairs += p * n
        spread += p * n * (p + n + 1) / 12
    return 2.576 * float(np.sqrt(spread)) / pairs


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_planted_signal_is_found_and_so_are_its_tiles(seed: int, tmp_path: Path) -> None:
    made, store = planted_cohort(seed), Store.open(str(tmp_path))
    report = cross_validated(
        made.cohort, made.bags, folds=4, training=QUICK, seed=seed, attention_to=store
    )
    assert 60 <= report.n_slides <= 100
    assert report.scores.auc.value >= 0.9
    assert report.scores.auc.low > 0.5 + chance_band(report) / 2
    found = []
    for slide, planted in made.planted.items():
        attention = pq.read_table(store.open_file(attention_key(slide)))["attention"].to_numpy()
        top = np.argsort(attention)[-len(planted) :]
        found.append(len(set(top) & set(planted)) / len(planted))
    assert np.mean(found) >= 0.7  # by chance, some 0.04


def test_of_shuffled_labels_nothing_is_learnt() -> None:
    missed = []
    for seed in SEEDS:
        made = planted_cohort(seed, shuffled=True)
        report = cross_validated(made.cohort, made.bags, folds=4, training=QUICK, seed=seed)
        missed.append(report.scores.auc.value - 0.5)
        assert abs(missed[-1]) <= chance_band(report) < 0.3
    # Three are told apart from chance more narrowly than one: by the band over the root of three.
    assert abs(np.mean(missed)) <= 0.3 / len(SEEDS) ** 0.5


def test_a_slide_is_told_by_a_model_that_saw_no_slide_of_its_patient() -> None:
    made, asked = planted_cohort(3, patients=8), list[list[str]]()

    def bags(slide_ids: Sequence[str]) -> Iterator[Bag]:
        asked.append(list(slide_ids))
        return made.bags(slide_ids)

    report = cross_validated(made.cohort, bags, folds=3, training=BRIEF)
    fold_of = {slide.slide_id: slide.fold for slide in report.slides}
    patients = dict(zip(made.cohort.slides, made.cohort.patients, strict=True))
    # Of each fold: the first bag, for its dimensions; train and validate twice; test.
    assert len(asked) == 3 * 6
    for fold in range(3):
        _, train, validation, _, _, test = asked[fold * 6 : fold * 6 + 6]
        parts = [{patients[slide] for slide in part} for part in (train, validation, test)]
        assert not parts[0] & parts[1]
        assert not (parts[0] | parts[1]) & parts[2]
        assert {fold_of[slide] for slide in test} == {fold}
        assert sorted(train + validation + test) == list(made.cohort.slides)


def test_the_report_is_json_and_the_same_for_the_same_seed() -> None:
    made = tiny_cohort(patients=8)
    first, again = (
        cross_validated(made.cohort, made.bags, folds=3, training=BRIEF, seed=4) for _ in range(2)
    )
    told = json.loads(json.dumps(first.to_dict()))
    assert first == again
    assert told["scores"]["auc"].keys() == {"value", "low", "high"}
    assert told["training"]["most_epochs"] == 2
    assert (told["n_slides"], told["n_patients"], len(told["best_epochs"])) == (8, 8, 3)
    assert told["by"] == "slide"
    for slide in told["slides"]:
        assert slide["probabilities"].keys() == {"normal", "tumour"}
        assert sum(slide["probabilities"].values()) == pytest.approx(1)


class Streamed(IterableDataset[Bag]):
    """Bags as a reader gives them."""

    def __init__(self, made: Planted, slide_ids: Sequence[str]) -> None:
        self._made, self._slide_ids = made, slide_ids

    def __iter__(self) -> Iterator[Bag]:
        return self._made.bags(self._slide_ids)


def test_bags_may_come_from_a_data_loader() -> None:
    made = tiny_cohort(patients=8)
    how = BRIEF.model_copy(update={"dropout": 0.0})

    def bags(slide_ids: Sequence[str]) -> Iterable[Bag]:
        return DataLoader(Streamed(made, slide_ids), batch_size=None)

    from_loader, plain = (
        cross_validated(made.cohort, source, folds=3, training=how) for source in (bags, made.bags)
    )
    assert from_loader == plain


def test_two_folds_are_too_few() -> None:
    made = tiny_cohort()
    with pytest.raises(LabelsError, match="folds: 2 is too few"):
        cross_validated(made.cohort, made.bags, folds=2)
