"""How fast tiles become vectors, by each path, against plain timm and what the device multiplies.

    python -m tests.benchmarks.encoder [--quick] [--model NAME] [--device DEVICE] [--out FILE]

Paths run in turns on batches of one size, each in a process of its own, so that what ours sets for
its process helps no other; with random weights, for speed does not depend on them. `eager` is plain
timm under autocast, in bf16 on a CPU and in fp16 on a GPU. Where a processor has no products in
bf16 ours takes fp32 of itself; plain timm in fp32 (`eager_auto`) is then measured, too. The peak
is the rate of one large matrix product in the same run; MFU is the work of the tiles over it.
Cosines are of the compiled path to float32, least over the sample tiles.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ray_pipeline.encoders.agreement import sample_tiles
from ray_pipeline.encoders.encoder import Encoder, resolve_precision
from ray_pipeline.encoders.forward import DTYPES
from ray_pipeline.encoders.model import build_model
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.spec import ModelSpec, Precision
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
AUTOCAST: dict[str, Precision] = {"cpu": "bf16", "cuda": "fp16"}
"""What plain timm is run in under autocast, by device."""
GPU_ROUNDS = 16
"""Batches of a turn on a GPU; one on a CPU."""

Work = Callable[[Precision], object]


@dataclass(frozen=True)
class Way:
    """One path to the vectors, as its process is told of it."""

    kind: str
    """`encoder` (ours) or `eager` (plain timm)."""
    model: str
    device: str
    precision: Precision
    batch_size: int | None
    """Tiles of a forward pass; None: as many as ours takes."""
    compile: bool = False


class Running:
    """A way's process, which does a turn when it is asked to."""

    def __init__(self, way: Way) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, way), daemon=True)
        self._process.start()
        theirs.close()
        self._precision = way.precision
        self.facts: dict[str, Any] | None = self._pipe.recv()
        """What the way tells of itself; None where this device can't go it."""

    def turn(self, precision: Precision | None = None) -> float:
        """The seconds of one turn; plain timm can be asked for another precision."""
        self._pipe.send(precision or self._precision)
        return float(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


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
    ours = Way("encoder", spec.name, asked.device, precision, asked.batch_size, compile=True)
    fast = Running(ours)
    facts = fast.facts
    assert facts is not None
    device, batch_size = torch.device(facts["device"]), facts["batch_size"]
    ours = replace(ours, device=str(device), batch_size=batch_size)
    autocast = AUTOCAST[device.type]
    eager = Running(replace(ours, kind="eager", precision=autocast, compile=False))
    fp8 = Running(replace(ours, precision="fp8")) if device.type == "cuda" else None
    turns = {"ours": fast.turn, "eager": eager.turn}
    if precision != autocast:
        turns["eager_auto"] = partial(eager.turn, precision)
    if fp8 is not None and fp8.facts is not None:
        turns["fp8"] = fp8.turn
    seconds = _in_turns(asked.turns, turns)
    fast.close()
    eager.close()
    # By itself: beside ours, a large model needs more memory than many a machine has.
    reference = Running(replace(ours, compile=False))
    seconds |= _in_turns(asked.turns, {"reference": reference.turn})
    reference.close()
    times = Times(seconds)
    per_s = times.per_s(batch_size * _rounds(device.type))
    peak = matmul_flops(device, DTYPES[precision])
    work = flops_per_tile(spec)
    ratios = {
        "ours_over_eager": times.ratio("ours", "eager"),
        "ours_over_eager_auto": times.ratio(
            "ours", "eager_auto" if "eager_auto" in turns else "eager"
        ),
        "reference_over_eager": per_s["reference"] / per_s["eager"],
        "mfu": per_s["ours"] * work / peak,
        "cosine_min": facts["cosine"],
    }
    if fp8 is not None and fp8.facts is not None:
        ratios["fp8_over_ours"] = times.ratio("fp8", "ours")
        ratios["fp8_cosine_min"] = fp8.facts["cosine"]
    finish(
        "encoder",
        ratios=ratios,
        wanted=WANTED[device.type],
        figures={
            "quick": asked.quick,
            "model": spec.name,
            "precision": precision,
            "batch_size": batch_size,
            "threads": _threads(),
            "turns": asked.turns,
            "tiles_per_s": per_s,
            "gflop_per_tile": work / 1e9,
            "matmul_gflop_per_s": peak / 1e9,
            "ready_s": facts["ready_s"],
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        },
        packages=PACKAGES,
        out=asked.out,
    )


def _serve(pipe: Connection, way: Way) -> None:
    torch.set_num_threads(_threads())
    try:
        work, facts = (_encoder if way.kind == "encoder" else _eager)(way)
    except SettingsError:
        pipe.send(None)
        return
    pipe.send(facts)
    while True:
        try:
            precision = pipe.recv()
        except EOFError:
            return
        started = time.perf_counter()
        work(precision)
        pipe.send(time.perf_counter() - started)


def _encoder(way: Way) -> tuple[Work, dict[str, Any]]:
    started, spec = time.perf_counter(), get_spec(way.model)
    encoder = Encoder(
        spec,
        resolve_weights(spec, "random"),
        device=way.device,
        precision=way.precision,
        batch_size=way.batch_size,
        compile=way.compile,
    )
    tiles = sample_tiles(spec.tile_px, encoder.batch_size * _rounds(encoder.device.type))
    facts = {
        "device": str(encoder.device),
        "batch_size": encoder.batch_size,
        "ready_s": time.perf_counter() - started,
        "cosine": encoder.agreements[1].least_cosine if encoder.agreements else None,
    }
    return (lambda _precision: encoder.encode(tiles)), facts


def _eager(way: Way) -> tuple[Work, dict[str, Any]]:
    """Plain timm as a model card shows it: float32 weights, autocast, pageable memory."""
    device, spec, batch_size = torch.device(way.device), get_spec(way.model), way.batch_size
    assert batch_size is not None
    model = build_model(spec).to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
    pixels = torch.from_numpy(sample_tiles(spec.tile_px, batch_size)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    images = ((pixels - mean) / std).contiguous()

    @torch.inference_mode()
    def work(precision: Precision) -> None:
        dtype = DTYPES[precision]
        for _ in range(_rounds(device.type)):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                model(images.to(device)).to(torch.float16).cpu()

    return work, {}


def _in_turns(turns: int, works: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds that each tells, in turns after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            took = work()
            if turn:
                seconds[name].append(took)
    return seconds


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _rounds(kind: str) -> int:
    return GPU_ROUNDS if kind == "cuda" else 1


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


if __name__ == "__main__":
    main()
