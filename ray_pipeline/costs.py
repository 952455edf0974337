"""What a job costs: requests, bytes, hours, and dollars where a price is known.

Figures are of three kinds. Measured: a benchmark of ours counted or timed this very thing.
Expected: computed from what was measured, or measured of something like it. Assumed: nobody has
measured it. A pace that the user states is `given`. Not in them are planning and committing, Ray's
own processes, the few requests that a job makes once, retries, and work that is done twice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_pipeline.console import Cells
from ray_pipeline.errors import SettingsError
from ray_pipeline.recipe import SHARD_TILES
from ray_pipeline.settings import keys_of, sentence_of
from ray_pipeline.slides.grid import ReadGeometry
from ray_pipeline.slides.levels import Level
from ray_pipeline.slides.normalise import NormaliseRule

Basis = Literal["measured", "expected", "assumed", "given"]
"""Where a figure comes from, the surest first."""
_BASES: tuple[Basis, ...] = ("measured", "expected", "assumed", "given")

DIRECT_TILES_PER_S = 3_800.0
"""JPEG tiles of 224 px as they are, of one core from a store 30 ms away. Measured:
`tests.benchmarks.reader`, `jpeg`, `remote`: 2,600 on an older core and 5,500 on one of 2025. This
and the next three are the geometric mean of two such figures."""
HALVED_TILES_PER_S = 1_870.0
"""The same from a level twice as fine, halved in the DCT. Measured: there, `half`,
`remote_beside_tiffslide`: 980, before `slides/half_jpeg`, and 3,560."""
JPEG2000_TILES_PER_S = 640.0
"""JPEG 2000 as it is, from a disk. Measured: there, `j2k`, `local`: 400, and 820 to
1,290."""
TIFFSLIDE_TILES_PER_S = 490.0
"""JPEG as it is through tiffslide in blocks of 4 MiB. Measured: there, `jpeg`,
`tiffslide_blockcache_4_mib_remote`: 280 and 860; expected of layouts that only tiffslide knows."""
RESAMPLED_TILES_PER_S = {1.1: 640.0, 1.98: 300.0, 2.9: 220.0, 3.7: 140.0}
"""Tiles of 224 px that one core resamples, by scale. Measured: `tests.benchmarks.pixels`."""
NORMALISED_TILES_PER_S = {"srgb": 870.0, "macenko": 1_900.0, "reinhard": 1_100.0}
"""Likewise to common colours (profiles of a matrix are faster, of a table slower) and stains."""
MEASURED_TILE_PX = 224
"""Side of the tiles that were measured, px."""
NUMBER_BYTES = 1.76
"""Bytes of one number of a vector in a slide's file, coordinates included: 2.7 KB for 1,536.
Measured on 20,000 vectors of that length; the numbers are float16's, compressed."""
STAGED_ROW_BYTES = 16
"""Of a fragment's row, beside two for each number: tile, x, y and tissue."""
READ_SHARDS = 8
"""Shards that a reader takes at a time, and for which it may have to open the slide."""
PUTS_PER_SLIDE, GETS_PER_SLIDE, DELETES_PER_SLIDE = 3, 1, 1
"""To the output beside a PUT and a GET for each fragment: file, record and done key are put, the
record is read, the fragments go in one request. Measured: `tests.benchmarks.scale`."""
LISTS_PER_SLIDE = 0.01
"""Listings tell 1,000 keys at a time. `tests.benchmarks.scale` counted 14 for 2,000 slides, with
the run that finds them all finished; a slide's record is listed too."""


class Prices(BaseModel):
    """What things cost, in US dollars.

    The defaults are list prices of S3 Standard in us-east-1, November 2026, for a job in the same
    region: look them up anew. Hours have none, for they differ tenfold between clouds and deals.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    usd_per_gpu_hour: float | None = Field(default=None, ge=0)
    """One GPU for one hour, with the share of its machine that is paid with it."""
    usd_per_cpu_hour: float | None = Field(default=None, ge=0)
    """One core for one hour; 0 where readers run beside the GPUs."""
    usd_per_1000_get: float = Field(default=0.0004, ge=0)
    """GETs and HEADs."""
    usd_per_1000_put_or_list: float = Field(default=0.005, ge=0)
    """PUTs and LISTs; DELETEs are free."""
    usd_per_gb_month: float = Field(default=0.023, ge=0)
    """Storing 1e9 bytes for a month."""
    usd_per_gb_egress: float = Field(default=0.0, ge=0)
    """1e9 bytes out of the store: nothing within a region."""


def load_prices(uri: str) -> Prices:
    """Prices of a YAML file (path or store URI); keys that it leaves out keep their defaults.

    Raises SettingsError naming the key, what is wrong with it and the mend.
    """
    said = keys_of(uri, flag="--prices", such_as="usd_per_gpu_hour: 2.5")
    try:
        return Prices.model_validate(said)
    except ValidationError as error:
        sentence = sentence_of(error, Prices, see="its keys are in infra/costs/prices.yaml.")
        raise SettingsError(f"{uri}: {sentence}") from None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one slide, or many, ask of store and machines. Adds up."""

    tiles: int = 0
    """Tiles to embed."""
    slide_gets: float = 0.0
    """GETs and HEADs of slides."""
    fetch_bytes: float = 0.0
    """Bytes of slides that are fetched."""
    fetch_basis: Basis = "expected"
    """Where that, and `slide_gets`, come from."""
    output_gets: float = 0.0
    """GETs of fragments and records."""
    output_puts: float = 0.0
    """PUTs of fragments, files, records and done keys."""
    output_lists: float = 0.0
    """LISTs of slides and output."""
    output_deletes: float = 0.0
    """DELETEs of many keys each."""
    stored_bytes: float = 0.0
    """Of the slides' files."""
    staged_bytes: float = 0.0
    """Of fragments, written, read once and deleted."""
    reading_cpu_s: float = 0.0
    """Seconds of one core that reads."""
    reading_basis: Basis = "measured"
    """Where that comes from: of a sum, the least sure."""

    def __add__(self, other: Work) -> Work:
        def summed(mine: Any, its: Any) -> Any:
            return max(mine, its, key=_BASES.index) if isinstance(mine, str) else mine + its

        names = [one.name for one in fields(self)]
        return Work(**{name: summed(getattr(self, name), getattr(other, name)) for name in names})


def work_of(
    tiles: int,
    *,
    dim: int,
    slide_gets: float,
    fetch_bytes: float,
    reading_cpu_s: float,
    reading_basis: Basis,
    fetch_basis: Basis = "expected",
) -> Work:
    """One slide's work: what its plan tells of reading, and what writing `tiles` vectors takes."""
    shards = -(-tiles // SHARD_TILES)
    return Work(
        tiles=tiles,
        slide_gets=slide_gets,
        fetch_bytes=fetch_bytes,
        fetch_basis=fetch_basis,
        output_gets=shards + GETS_PER_SLIDE,
        output_puts=shards + PUTS_PER_SLIDE,
        output_lists=LISTS_PER_SLIDE,
        output_deletes=DELETES_PER_SLIDE,
        stored_bytes=tiles * dim * NUMBER_BYTES,
        staged_bytes=tiles * (2.0 * dim + STAGED_ROW_BYTES),
        reading_cpu_s=reading_cpu_s,
        reading_basis=reading_basis,
    )


def reading_s(
    geometry: ReadGeometry, level: Level, *, tile_px: int, normalise: NormaliseRule
) -> tuple[float, Basis]:
    """Seconds of one core that one tile of `level` takes, and how sure that is."""
    basis: Basis = "measured"
    per_area, area = 1 / DIRECT_TILES_PER_S, (geometry.side_px / MEASURED_TILE_PX) ** 2
    if not level.codec:
        per_area, basis = 1 / TIFFSLIDE_TILES_PER_S, "expected"
    elif level.codec == "jpeg2000":
        per_area = 1 / JPEG2000_TILES_PER_S
    elif level.codec != "jpeg":
        basis = "assumed"
    elif geometry.reduce > 1:
        per_area = (geometry.reduce / 2) ** 2 / HALVED_TILES_PER_S
        basis = "measured" if geometry.reduce == 2 else "expected"
    seconds, more = area * per_area, 0.0
    if geometry.side_px != tile_px:
        scales, rates = zip(*RESAMPLED_TILES_PER_S.items(), strict=True)
        more += float(np.interp(geometry.side_px / tile_px, scales, 1 / np.array(rates)))
    for step in (normalise.colour, normalise.stain):
        if step in NORMALISED_TILES_PER_S:
            more += 1 / NORMALISED_TILES_PER_S[step]
    if basis == "measured" and (more or tile_px != MEASURED_TILE_PX):
        basis = "expected"
    return seconds + more * (tile_px / MEASURED_TILE_PX) ** 2, basis


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line of a cost."""

    what: str
    """In words, unit included."""
    amount: float
    """How many."""
    basis: Basis
    """Where the amount comes from."""
    usd: float | None
    """Dollars; None where no price is known."""
    per: Literal["job", "month"] = "job"
    """Whether it is paid once, or every month."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a job costs."""

    items: dict[str, Item]
    """By stable names that hold their units."""

    @property
    def usd(self) -> float:
        """Dollars paid once, for all that has a price."""
        return sum(item.usd or 0.0 for item in self.items.values() if item.per == "job")

    @property
    def usd_per_month(self) -> float:
        """Dollars for every month that the output is kept."""
        return sum(item.usd or 0.0 for item in self.items.values() if item.per == "month")

    @property
    def unpriced(self) -> list[str]:
        """Names of items without a price, which are in no sum."""
        return [name for name, item in self.items.items() if item.usd is None]

    def to_dict(self) -> dict[str, Any]:
        """As `plan --json` prints it."""
        return {
            "usd": self.usd,
            "usd_per_month": self.usd_per_month,
            "unpriced": self.unpriced,
            "items": {name: asdict(item) for name, item in self.items.items()},
        }

    def rows(self) -> list[Cells]:
        """As a table: what, how many, dollars, and where the figure comes from."""
        rows: list[Cells] = [("cost", "amount", "USD", "figure")]
        for item in self.items.values():
            usd = "no price" if item.usd is None else told(item.usd)
            every = " a month" if item.per == "month" else ""
            rows.append((item.what, told(item.amount), usd + every, item.basis))
        without = " and ".join(self.items[name].what for name in self.unpriced)
        rows.append((f"sum without {without}" if without else "sum", "", told(self.usd), ""))
        return rows


def told(figure: float) -> str:
    """A figure to three digits, or whole with commas where it has more."""
    return f"{figure:,.0f}" if figure >= 999.5 else f"{figure:.3g}"


def cost_of(work: Work, *, tiles_per_s: float, pace: Basis, prices: Prices) -> Cost:
    """What `work` costs on GPUs that embed `tiles_per_s` each; `pace` says how sure that is."""
    get, put = prices.usd_per_1000_get / 1000, prices.usd_per_1000_put_or_list / 1000

    def item(
        what: str,
        amount: float,
        basis: Basis,
        usd_each: float | None,
        per: Literal["job", "month"] = "job",
    ) -> Item:
        usd = None if usd_each is None else amount * usd_each
        return Item(what=what, amount=amount, basis=basis, usd=usd, per=per)

    gpu_hours, reading_hours = work.tiles / tiles_per_s / 3600, work.reading_cpu_s / 3600
    reading, fetching = work.reading_basis, work.fetch_basis
    read_gb = (work.fetch_bytes + work.staged_bytes) / 1e9
    return Cost(
        items={
            "gpu_hours": item("GPU-hours", gpu_hours, pace, prices.usd_per_gpu_hour),
            "reading_cpu_hours": item(
                "CPU-hours of reading", reading_hours, reading, prices.usd_per_cpu_hour
            ),
            "slide_gets": item("GETs of slides", work.slide_gets, fetching, get),
            "output_gets": item("GETs of the output", work.output_gets, "measured", get),
            "output_puts": item("PUTs of the output", work.output_puts, "measured", put),
            "output_lists": item("LISTs", work.output_lists, "expected", put),
            "output_deletes": item("DELETEs", work.output_deletes, "measured", 0.0),
            "read_gb": item("GB out of the store", read_gb, fetching, prices.usd_per_gb_egress),
            # Until its slide is whole: too short for a bill.
            "staged_gb": item(
                "GB staged and deleted again", work.staged_bytes / 1e9, "expected", 0.0
            ),
            "stored_gb": item(
                *("GB stored", work.stored_bytes / 1e9, "measured"),
                prices.usd_per_gb_month,
                "month",
            ),
        }
    )
