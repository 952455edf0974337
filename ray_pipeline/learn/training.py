"""Training of one ABMIL model, until its loss on slides it does not learn from stops falling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field

from ray_pipeline.dataset.bags import Bag
from ray_pipeline.errors import LabelsError, SettingsError
from ray_pipeline.learn.abmil import Abmil
from ray_pipeline.learn.cohort import Bags, Cohort, streamed


class Training(BaseModel):
    """How a model is trained.

    The defaults are those of CLAM (Lu et al. 2021, github.com/mahmoodlab/CLAM, `main.py`), with
    AdamW instead of Adam, and classes weighed in the loss instead of drawn more often.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int = Field(default=512, ge=1, description="Numbers a tile's vector becomes.")
    attention: int = Field(default=256, ge=1, description="Numbers the attention is made of.")
    dropout: float = Field(default=0.25, ge=0, lt=1, description="Share of them left out.")
    learning_rate: float = Field(default=1e-4, gt=0, description="Of AdamW.")
    weight_decay: float = Field(default=1e-5, ge=0, description="Of AdamW.")
    slides_per_step: int = Field(
        default=1, ge=1, description="Slides whose gradients are added up before a step."
    )
    class_weights: bool = Field(
        default=True, description="Weigh slides so that all classes weigh the same."
    )
    least_epochs: int = Field(default=50, ge=1, description="Epochs before it may stop.")
    most_epochs: int = Field(default=200, ge=1, description="Epochs after which it stops.")
    patience: int = Field(
        default=20, ge=1, description="Epochs without a lower validation loss before it stops."
    )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model, as it was in its best epoch."""

    model: Abmil
    """In evaluation mode, on the device it was trained on."""
    epochs: int
    """Epochs trained."""
    best_epoch: int
    """The one whose weights it has, counted from 1."""
    loss: float
    """Its mean loss on the validation slides."""

    @torch.no_grad()
    def predict(self, bag: Bag) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        """Probabilities of the classes, float64 [C], and attention, float32 [n]."""
        device = next(self.model.parameters()).device
        logits, attention = self.model(bag["features"].to(device))
        probabilities = torch.softmax(logits.double(), dim=0)
        return probabilities.cpu().numpy(), attention.cpu().numpy()


def fit(
    cohort: Cohort,
    bags: Bags,
    *,
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    training: Training | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Fitted:
    """Train on the slides at places `train` of the cohort; those at `validation` say when to stop.

    Bags are streamed, one slide in memory at a time; every epoch asks for the training slides in
    an order of its own. The same seed, bags and device give the same model, and the caller's random
    numbers are left as they were. Raises LabelsError for a class that is not among the
    training slides, and for slides of which no usable bag comes; SettingsError where the loss is no
    number.
    """
    how = training or Training()
    weights = _class_weights(cohort, train, how)
    order = np.random.default_rng(seed)
    with _own_random_numbers(device):
        first = next(streamed(bags, cohort.ids(train[:1])))
        torch.manual_seed(seed)  # only now: what streams the bags may have drawn some
        loop = _Loop(cohort, bags, how, dim=first["features"].shape[1], weights=weights.to(device))
        best: dict[str, torch.Tensor] = {}
        epoch, best_epoch, least = 0, 0, float("inf")
        while epoch < how.most_epochs:
            epoch += 1
            loop.learn(cohort.ids(order.permutation(train)))
            loss = loop.loss(cohort.ids(validation))
            if loss < least:
                best_epoch, least = epoch, loss
                best = {name: value.clone() for name, value in loop.model.state_dict().items()}
            if epoch >= how.least_epochs and epoch - best_epoch >= how.patience:
                break
        if not best:
            raise SettingsError(
                f"learning_rate: at {how.learning_rate} the loss is no number; use a lower one."
            )
        loop.model.load_state_dict(best)
    return Fitted(model=loop.model.eval(), epochs=epoch, best_epoch=best_epoch, loss=least)


class _Loop:
    """A model under training."""

    def __init__(
        self, cohort: Cohort, bags: Bags, how: Training, *, dim: int, weights: torch.Tensor
    ) -> None:
        self._cohort, self._bags, self._how, self._weights = cohort, bags, how, weights
        self.model = Abmil(
            dim=dim,
            n_classes=len(cohort.classes),
            hidden=how.hidden,
            attention=how.attention,
            dropout=how.dropout,
        ).to(weights.device)
        # Fused: one kernel a step and tensor instead of a dozen, which are half of a small slide.
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay, fused=True
        )

    def learn(self, slides: Sequence[str]) -> None:
        """One epoch. A bag is a batch, so gradients of several are added up before a step."""
        self.model.train()
        per_step = self._how.slides_per_step
        for number, bag in enumerate(streamed(self._bags, slides), start=1):
            loss, _ = self._loss(bag)
            (loss / per_step).backward()  # type: ignore[no-untyped-call]
            if number % per_step == 0 or number == len(slides):
                self._optimizer.step()
                self._optimizer.zero_grad()

    @torch.no_grad()
    def loss(self, slides: Sequence[str]) -> float:
        """Mean over slides, weighed by their classes."""
        self.model.eval()
        told = [self._loss(bag) for bag in streamed(self._bags, slides)]
        total, weight = (torch.stack(part).sum() for part in zip(*told, strict=True))
        return float(total / weight)

    def _loss(self, bag: Bag) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted cross entropy of one slide, and its weight."""
        target = self._cohort.targets[self._cohort.places[bag["slide_id"]]]
        logits, _ = self.model(bag["features"].to(self._weights.device))
        weight = self._weights[target]
        return -weight * torch.log_softmax(logits, dim=0)[target], weight


def _class_weights(cohort: Cohort, train: npt.NDArray[np.int64], how: Training) -> torch.Tensor:
    """What a slide of each class weighs, float32 [C]; 1 in the mean over the training slides."""
    counts = np.bincount(cohort.targets[train], minlength=len(cohort.classes))
    if not counts.all():
        raise LabelsError(
            f"class '{cohort.classes[int(counts.argmin())]}' is not among the training slides."
        )
    weights = counts.sum() / (len(counts) * counts) if how.class_weights else np.ones(len(counts))
    return torch.from_numpy(weights.astype(np.float32))


@contextmanager
def _own_random_numbers(device: str) -> Iterator[None]:
    """Whatever is drawn of torch's random numbers, they are as before afterwards."""
    on = torch.device(device)
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        yield
