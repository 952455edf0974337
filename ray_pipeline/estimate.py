"""`historay plan`: what a job would do and cost, from the overviews alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from ray_pipeline.costs import READ_SHARDS, Basis, Cost, Prices, Work, cost_of, reading_s, work_of
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.errors import SlideError, StoreError
from ray_pipeline.plan import plan_slide
from ray_pipeline.progress import Counts
from ray_pipeline.recipe import tiling_of, tissue_rule_of
from ray_pipeline.rows import Failure
from ray_pipeline.settings import JobSettings
from ray_pipeline.slides.normalise import NormaliseRule
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.sources import SlideSource
from ray_pipeline.worklist import slides_of

SLIDES_AT_ONCE = 4
"""Slides planned concurrently: the work is mostly waiting for the store."""
H100_TILES_PER_S = 850.0
"""Pace of h-optimus-0 expected of one H100 in compiled fp16: not yet measured."""


def h100_tiles_per_s(model: str) -> float:
    """Pace expected of one H100: `H100_TILES_PER_S`, by parameters times tokens for other models.

    That product is a tile's work but for attention itself, 3 % of the giant's. Raises SettingsError
    for an unknown model.
    """
    giant, asked = get_spec("h-optimus-0"), get_spec(model)
    work = asked.parameters * asked.tokens / (giant.parameters * giant.tokens)
    return round(H100_TILES_PER_S / work, 1)


@dataclass(frozen=True, kw_only=True)
class SlideEstimate:
    """What one slide would take."""

    slide_id: str
    """The slide's id."""
    uri: str
    """Where it lies."""
    n_tiles: int = 0
    """Tiles that would be kept."""
    level: int | None = None
    """Level that would be read."""
    mpp_achieved: float | None = None
    """Microns per pixel of the tiles."""
    fetch_bytes: int = 0
    """Compressed bytes under the kept tiles, plus what planning fetched."""
    gets: int = 0
    """GETs and HEADs of planning and reading it, with those of opening it anew for some shards."""
    reading_cpu_s: float = 0.0
    """Seconds of one core that reading its tiles takes."""
    reading_basis: Basis = "measured"
    """Where that comes from."""
    failure: Failure | None = None
    """Why it would fail, if so."""


def estimate_slides(settings: JobSettings, watch: Callable[[Counts], None]) -> list[SlideEstimate]:
    """One estimate per slide of the job, in slide_id order; `watch` hears of each."""
    tiling_of(settings)
    sources = slides_of(settings)
    counts, estimates = Counts(slides=len(sources)), []
    with ThreadPoolExecutor(SLIDES_AT_ONCE) as pool:
        for estimate in pool.map(lambda source: _estimate(source, settings), sources):
            estimates.append(estimate)
            counts.slides_planned += 1
            counts.slides_done += estimate.failure is None
            counts.slides_failed += estimate.failure is not None
            counts.tiles_planned += estimate.n_tiles
            watch(counts)
    return estimates


def _estimate(source: SlideSource, settings: JobSettings) -> SlideEstimate:
    nothing = SlideEstimate(slide_id=source.slide_id, uri=source.uri)
    if source.error is not None:
        failure = Failure.of("list", source.error)
        return SlideEstimate(**{**vars(nothing), "failure": failure})
    try:
        coordinates = source.coordinates()
        slide = open_slide(
            source.uri,
            slide_id=source.slide_id,
            etag=source.etag,
            mpp_override=source.mpp_override,
        )
        try:
            opening = slide.counts.gets + 1  # a HEAD, which is not counted
            plan = plan_slide(
                slide,
                tiling_of(settings),
                tissue_rule_of(settings),
                max_tiles=settings.max_tiles_per_slide,
                coordinates=coordinates,
            )
            geometry, planning = plan.geometry, slide.counts.gets + 1
            tiles: dict[str, Any] = {
                "level": geometry.level,
                "reduce": geometry.reduce,
                "xy": plan.xy,
                "side_px": geometry.side_px,
            }
            seconds, basis = reading_s(
                geometry,
                slide.levels[geometry.level],
                tile_px=plan.tile_px,
                normalise=NormaliseRule(colour=settings.colour, stain=settings.stain),
            )
            opened = -(-plan.n_shards // READ_SHARDS)
            return SlideEstimate(
                slide_id=source.slide_id,
                uri=source.uri,
                n_tiles=plan.n_tiles,
                level=geometry.level,
                mpp_achieved=geometry.mpp_achieved,
                fetch_bytes=slide.compressed_bytes(**tiles) + slide.counts.bytes_fetched,
                gets=planning + opened * opening + slide.ranges(**tiles),
                reading_cpu_s=round(plan.n_tiles * seconds, 4),
                reading_basis=basis,
            )
        finally:
            slide.close()
    except (SlideError, StoreError) as error:
        return SlideEstimate(**{**vars(nothing), "failure": Failure.of("plan", error)})


def job_cost(
    estimates: list[SlideEstimate], model: str, *, tiles_per_s: float | None, prices: Prices
) -> Cost:
    """What the slides cost with `model`; without `tiles_per_s`, on GPUs as fast as one H100.

    Raises SettingsError for an unknown model.
    """
    dim, work = get_spec(model).dim, Work()
    for estimate in estimates:
        if estimate.failure is None:
            work += work_of(
                estimate.n_tiles,
                dim=dim,
                slide_gets=estimate.gets,
                fetch_bytes=estimate.fetch_bytes,
                reading_cpu_s=estimate.reading_cpu_s,
                reading_basis=estimate.reading_basis,
            )
    if tiles_per_s is None:
        return cost_of(work, tiles_per_s=h100_tiles_per_s(model), pace="expected", prices=prices)
    return cost_of(work, tiles_per_s=tiles_per_s, pace="given", prices=prices)


def summary(estimates: list[SlideEstimate], tiles_per_s: float) -> dict[str, object]:
    """Totals of a job, as `plan --json` prints them."""
    tiles = sum(estimate.n_tiles for estimate in estimates)
    return {
        "slides": len(estimates),
        "slides_failed": sum(estimate.failure is not None for estimate in estimates),
        "tiles": tiles,
        "fetch_bytes": sum(estimate.fetch_bytes for estimate in estimates),
        "tiles_per_s": tiles_per_s,
        "gpu_hours": round(tiles / tiles_per_s / 3600, 4),
        "per_slide": [asdict(estimate) for estimate in estimates],
    }
