"""Training is seeded, stops early, adds up gradients, and weighs classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.errors import LabelsError, SettingsError
from ray_pipeline.learn.cohort import Cohort
from ray_pipeline.learn.training import Fitted, Training, fit
from tests.learn.cohorts import Planted, planted_cohort, tiny_cohort

SMALL: dict[str, Any] = {"hidden": 8, "attention": 4, "learning_rate": 1e-2}
BRIEF = Training(**SMALL, least_epochs=1, most_epochs=3)


def fitted(made: Planted, training: Training = BRIEF, **said: Any) -> Fitted:
    """Half of the slides train, the others say when to stop."""
    places = np.arange(len(made.cohort.slides))
    half = len(places) // 2
    said = {"bags": made.bags, "train": places[:half], "validation": places[half:], **said}
    return fit(made.cohort, training=training, **said)


def weights(of: Fitted) -> torch.Tensor:
    return torch.cat([value.cpu().flatten() for value in of.model.state_dict().values()])


def test_equal_seeds_give_equal_models_and_the_callers_numbers_are_left_alone() -> None:
    made = tiny_cohort()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (fitted(made, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_it_stops_when_the_validation_loss_no_longer_falls() -> None:
    made = planted_cohort(0, patients=8, shuffled=True)
    how = Training(**SMALL, least_epochs=4, most_epochs=60, patience=3)
    found = fitted(made, how)
    assert found.epochs < 60
    assert found.epochs >= max(4, found.best_epoch + 3)
    # The model is that of the best epoch: trained no further, it is the same one.
    short = fitted(made, how.model_copy(update={"most_epochs": found.best_epoch}))
    assert torch.equal(weights(found), weights(short))
    assert found.loss == short.loss


def test_gradients_of_several_slides_are_one_step() -> None:
    made = tiny_cohort(patients=12)

    def backwards(slide_ids: Sequence[str]) -> Iterator[Bag]:
        return made.bags(slide_ids[::-1])

    def both(per_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        how = Training(**SMALL, dropout=0, slides_per_step=per_step, most_epochs=1)
        return weights(fitted(made, how)), weights(fitted(made, how, bags=backwards))

    torch.testing.assert_close(*both(per_step=6))
    in_turn, in_return = both(per_step=1)
    assert not torch.allclose(in_turn, in_return)
    assert not torch.allclose(in_turn, both(per_step=6)[0])


def test_classes_weigh_the_same_however_many_slides_they_have() -> None:
    """Where nothing tells the classes apart, what is said is how often each counts."""
    slides = [f"s{index:02d}" for index in range(20)]
    features = dict.fromkeys(slides, np.ones((3, 4), np.float32))
    labels = {slide: "rare" if index % 10 == 0 else "usual" for index, slide in enumerate(slides)}
    made = Planted(cohort=Cohort.of(labels), features=features, planted={})

    def rare(class_weights: bool) -> float:
        how = Training(
            **{**SMALL, "learning_rate": 0.05},
            dropout=0,
            class_weights=class_weights,
            slides_per_step=10,
            most_epochs=60,
        )
        told, _ = fitted(made, how).predict(next(made.bags(slides)))
        return float(told[0])

    assert made.cohort.classes[0] == "rare"
    assert rare(class_weights=True) == pytest.approx(0.5, abs=0.03)
    assert rare(class_weights=False) == pytest.approx(0.1, abs=0.03)


def test_a_class_that_nothing_is_learnt_of_is_named() -> None:
    made = tiny_cohort()
    with pytest.raises(LabelsError, match="class 'tumour' is not among the training slides"):
        fitted(made, train=np.array([0, 2]))


def test_a_loss_that_is_no_number_is_an_error() -> None:
    with pytest.raises(SettingsError, match="learning_rate: at 1e\\+30 the loss is no number"):
        fitted(tiny_cohort(), BRIEF.model_copy(update={"learning_rate": 1e30}))


def test_unknown_keys_and_values_out_of_range_are_refused() -> None:
    for wrong in ({"epochs": 3}, {"dropout": 1.0}, {"patience": 0}):
        with pytest.raises(ValidationError):
            Training(**wrong)


@pytest.mark.gpu
def test_a_gpu_trains_the_same_model_each_time() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    made = planted_cohort(0, patients=8)
    first, again = (fitted(made, seed=1, device="cuda") for _ in range(2))
    assert torch.equal(weights(first), weights(again))
    assert next(first.model.parameters()).is_cuda
    told, attention = first.predict(next(made.bags(made.cohort.slides)))
    assert [told.dtype.name, attention.dtype.name] == ["float64", "float32"]
    assert told.sum() == pytest.approx(1)
