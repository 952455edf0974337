"""Bags of tiles for multiple instance learning: a torch dataset that yields one slide at a time."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ray_pipeline.dataset.slide_files import SlideFiles
from ray_pipeline.errors import SettingsError


class Bag(TypedDict):
    """One slide."""

    slide_id: str
    """The slide's id."""
    features: torch.Tensor
    """float32 [n, D]."""
    coords: torch.Tensor
    """int32 [n, 2], left top corners, level-0 px."""
    label: Any
    """What `labels` has for the slide; None where no labels were given."""


class SlideBags(IterableDataset[Bag]):
    """The bags of some slides; for `DataLoader(bags, batch_size=None, num_workers=k)`.

    Workers share the slides out among themselves, and each holds one at a time. Processes of a
    distributed training each want bags of their own slides.
    """

    def __init__(
        self,
        files: SlideFiles,
        slides: Sequence[str],
        labels: Mapping[str, Any] | None = None,
        *,
        max_tiles: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        """Raises SettingsError when `labels` lacks one of the slides."""
        super().__init__()
        missing = [] if labels is None else [one for one in slides if one not in labels]
        if missing:
            raise SettingsError(
                f"labels: none for {missing[0]}"
                + (f" and {len(missing) - 1} more slides" if missing[1:] else "")
                + "; leave these out of `slides`, or give None for them."
            )
        if max_tiles is not None and max_tiles < 1:
            raise SettingsError(f"max_tiles: {max_tiles}: a bag has at least one tile.")
        self._files, self._slides = files, list(slides)
        self._labels = None if labels is None else {one: labels[one] for one in slides}
        self._max_tiles, self._shuffle, self._seed = max_tiles, shuffle, seed
        # In shared memory: workers that live on from epoch to epoch hold a copy of all else.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self._process: int | None = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def __len__(self) -> int:
        return len(self._slides)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, and other tiles, from the next iteration on; 0 at first."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Bag]:
        self._refuse_forks()
        epoch = int(self._epoch)
        order = np.arange(len(self._slides))
        if self._shuffle:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        worker = get_worker_info()
        mine = order if worker is None else order[worker.id :: worker.num_workers]
        for index in mine:
            yield self._bag(self._slides[index], epoch)

    def _bag(self, slide_id: str, epoch: int) -> Bag:
        coordinates, vectors = self._files.read(slide_id)
        if self._max_tiles is not None and len(vectors) > self._max_tiles:
            # By the slide, so that the tiles do not depend on how many workers there are.
            seeds = [self._seed, epoch, zlib.crc32(slide_id.encode())]
            chosen = np.random.default_rng(seeds).choice(
                len(vectors), self._max_tiles, replace=False
            )
            chosen.sort()
            coordinates, vectors = coordinates[chosen], vectors[chosen]
        return Bag(
            slide_id=slide_id,
            features=torch.from_numpy(vectors),
            coords=torch.from_numpy(coordinates),
            label=None if self._labels is None else self._labels[slide_id],
        )

    def _refuse_forks(self) -> None:
        forked = self._process is not None and self._process != os.getpid()
        if forked and self._files.output.scheme != "file":
            raise SettingsError(
                f"{self._files.output.uri}: this worker was forked, and the stores' client has "
                "threads that a fork leaves behind: give the DataLoader "
                "multiprocessing_context='spawn'."
            )
