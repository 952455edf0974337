"""How fast tiles become vectors, by each path, against plain timm and what the device multiplies.

    python -m tests.benchmarks.encoder [--quick] [--model NAME] [--device DEVICE] [--out FILE]

Paths run in turns, each on batches of one size, with random weights: speed does not depend on them.
The peak is the rate of one large matrix product in the same run; MFU is the work of the tiles over
it. Cosines are of the compiled path to float32, least over the sample tiles.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ray_pipeline.encoders.agreement import sample_tiles
from ray_pipeline.encoders.encoder import Encoder, resolve_precision
from ray_pipeline.encoders.forward import DTYPES
from ray_pipeline.encoders.model import build_model
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.errors import SettingsError
from tests.benchmarks.reader_measures import Times
from tests.benchmarks.report import finish

WANTED = {
    "cpu": {"ours_over_eager": ">= 1.15", "cosine_min": ">= 0.999"},
    "cuda": {
        "ours_over_eager": ">= 1.35",
        "cosine_min": ">= 0.999",
        "mfu": ">= 0.65",
        "fp8_over_ours": ">= 1.3",
        "fp8_cosine_min": ">= 0.999",
    },
}
"""By device; on one without float8 its two rows stay open."""
PACKAGES = ("torch", "timm")


def main() -> None:
    """Measure every path of one model on one device, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the toy model, for trying it out")
    parser.add_argument("--model", help="default: h-optimus-0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, help="default: by the device")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    spec = get_spec(asked.model or ("toy" if asked.quick else "h-optimus-0"))
    precision = resolve_precision(asked.device, "auto")
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    made: dict[str, Any] = {"device": asked.device, "precision": precision}
    started = time.perf_counter()
    source = resolve_weights(spec, "random")
    ours = Encoder(spec, source, compile=True, batch_size=asked.batch_size, **made)
    ready_s = time.perf_counter() - started
    kind, batch_size = ours.device.type, ours.batch_size
    made["batch_size"] = batch_size
    reference = Encoder(spec, source, **made)
    count = batch_size * (1 if kind == "cpu" else 16)
    tiles = sample_tiles(spec.tile_px, count)
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.encode(tiles),
        "reference": lambda: reference.encode(tiles),
        "eager": Eager(spec, ours.device, DTYPES[precision], batch_size, count),
    }
    cosines = {"cosine_min": _cosine(ours)}
    fp8 = _fp8(spec, {**made, "precision": "fp8"})
    if fp8 is not None:
        works["fp8"] = lambda: fp8.encode(tiles)
        cosines["fp8_cosine_min"] = _cosine(fp8)
    times = in_turns_of_each(asked.turns, works)
    per_s = times.per_s(count)
    peak = matmul_flops(ours.device, DTYPES[precision])
    work = flops_per_tile(spec)
    finish(
        "encoder",
        ratios={
            "ours_over_eager": times.ratio("ours", "eager"),
            "reference_over_eager": times.ratio("reference", "eager"),
            "mfu": per_s["ours"] * work / peak,
            **({"fp8_over_ours": times.ratio("fp8", "ours")} if fp8 else {}),
            **cosines,
        },
        wanted=WANTED[kind],
        figures={
            "quick": asked.quick,
            "model": spec.name,
            "precision": precision,
            "batch_size": batch_size,
            "threads": threads,
            "tiles_per_s": per_s,
            "gflop_per_tile": work / 1e9,
            "matmul_gflop_per_s": peak / 1e9,
            "ready_s": ready_s,
            "gpu": torch.cuda.get_device_name() if kind == "cuda" else None,
        },
        packages=PACKAGES,
        out=asked.out,
    )


class Eager:
    """Plain timm as a model card shows it: float32 weights, autocast, pageable memory."""

    def __init__(
        self, spec: ModelSpec, device: torch.device, dtype: torch.dtype, batch: int, count: int
    ) -> None:
        self._model = build_model(spec).to_empty(device=device).eval()
        with torch.no_grad():
            for parameter in self._model.parameters():
                nn.init.normal_(parameter, std=0.02)
        self._device, self._dtype, self._rounds = device, dtype, count // batch
        images = torch.from_numpy(sample_tiles(spec.tile_px, batch)).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
        self._images = ((images - mean) / std).contiguous()

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(self._rounds):
            with torch.autocast(self._device.type, dtype=self._dtype):
                self._model(self._images.to(self._device)).to(torch.float16).cpu()


def in_turns_of_each(turns: int, works: dict[str, Callable[[], object]]) -> Times:
    """Seconds of each, in turns after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return Times(seconds)


def flops_per_tile(spec: ModelSpec) -> float:
    """Floating-point operations of the plain model for one tile, two for each multiplication."""
    model = build_model(spec).eval()
    image = torch.empty((1, 3, spec.tile_px, spec.tile_px), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return float(counter.get_total_flops())


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations/s of the fastest of some large products in `dtype`."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _cosine(encoder: Encoder) -> float:
    assert encoder.agreements is not None
    return encoder.agreements[1].least_cosine


def _fp8(spec: ModelSpec, made: dict[str, Any]) -> Encoder | None:
    try:
        return Encoder(spec, resolve_weights(spec, "random"), compile=True, **made)
    except SettingsError:
        return None


if __name__ == "__main__":
    main()
