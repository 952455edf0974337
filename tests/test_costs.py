"""What a job costs: figures that are those of the benchmarks, add up, and say what they are."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ray_pipeline import costs
from ray_pipeline.cli import app
from ray_pipeline.costs import Cost, Prices, Work, cost_of, reading_s, work_of
from ray_pipeline.dataset.commit import embeddings_writer
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.schema import embeddings_schema
from ray_pipeline.dataset.staging import Fragment, put_fragment
from ray_pipeline.errors import SettingsError
from ray_pipeline.slides.grid import TilingRule, choose_geometry
from ray_pipeline.slides.levels import Level
from ray_pipeline.slides.normalise import NormaliseRule
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.commands import historay
from tests.conftest import ROOT

DIM = 1536
PLAIN = NormaliseRule()
READER = json.loads((ROOT / "tests/benchmarks/results/reader.json").read_text())["figures"]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def slide_work(tiles: int) -> Work:
    return work_of(
        tiles,
        dim=DIM,
        slide_gets=tiles / 16,
        fetch_bytes=12_500 * tiles,
        reading_cpu_s=tiles / costs.DIRECT_TILES_PER_S,
        reading_basis="measured",
    )


def cost(work: Work, prices: Prices | None = None) -> Cost:
    return cost_of(work, tiles_per_s=850, pace="expected", prices=prices or Prices())


def read_at(
    mpp: float, codec: str = "jpeg", normalise: NormaliseRule = PLAIN
) -> tuple[float, costs.Basis]:
    reduces = (1, 2, 4) if codec == "jpeg" else (1,)
    level = Level(
        index=0,
        width_px=9000,
        height_px=9000,
        downsample=1.0,
        mpp=mpp,
        reduces=reduces,
        codec=codec,
    )
    geometry = choose_geometry([level], TilingRule(), slide_id="a")
    return reading_s(geometry, level, tile_px=224, normalise=normalise)


@pytest.mark.parametrize(
    ("stated", "measure", "named"),
    [
        (costs.DIRECT_TILES_PER_S, "jpeg", "remote"),
        (costs.HALVED_TILES_PER_S, "half", "remote_beside_tiffslide"),
        (costs.JPEG2000_TILES_PER_S, "j2k", "local"),
        (costs.TIFFSLIDE_TILES_PER_S, "jpeg", "tiffslide_blockcache_4_mib_remote"),
    ],
)
def test_the_pace_of_reading_is_that_of_the_benchmark(
    stated: float, measure: str, named: str
) -> None:
    assert 0.5 < stated / READER[measure]["tiles_per_s"][named] < 2


def test_what_pixels_cost_is_what_the_architecture_tells() -> None:
    (scales, rates) = re.findall(
        r"\| resampling, tiles/s on one core by scale ([\d., ]+) \| ([\d, ]+) \|", ARCHITECTURE
    )[0]
    told = zip(map(float, scales.split(",")), map(float, rates.split(",")), strict=True)
    assert dict(told) == costs.RESAMPLED_TILES_PER_S
    (row,) = re.findall(r"to sRGB by matrix, by table; Macenko; Reinhard \| (.+) \|", ARCHITECTURE)
    matrix, table, macenko, reinhard = (
        tuple(int(rate.replace(",", "")) for rate in span.split(" to ")) for span in row.split(";")
    )
    stated = costs.NORMALISED_TILES_PER_S
    assert table[0] <= stated["srgb"] <= matrix[1]
    assert macenko[0] <= stated["macenko"] <= macenko[1]
    assert reinhard[0] <= stated["reinhard"] <= reinhard[1]


def test_files_and_fragments_take_the_bytes_that_are_told(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 4096
    vectors = rng.normal(size=(n, DIM)).astype(np.float16)
    xy = np.stack([np.arange(n) % 64 * 224, np.arange(n) // 64 * 224], axis=1).astype(np.int32)
    tissue = rng.random(n, np.float32)
    schema, sink = embeddings_schema(DIM), io.BytesIO()
    values = pa.array(vectors.astype(np.float32).reshape(-1))
    columns = {
        "slide_id": pa.array(["a"] * n).cast(schema.field("slide_id").type),
        "tile": pa.array(np.arange(n, dtype=np.int32)),
        "x": pa.array(xy[:, 0]),
        "y": pa.array(xy[:, 1]),
        "tissue": pa.array(tissue),
        "embedding": pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type),
    }
    with embeddings_writer(sink, schema) as writer:
        writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
    assert len(sink.getvalue()) == pytest.approx(slide_work(n).stored_bytes, rel=0.05)

    layout, shard = Layout("0" * 12), slice(0, 256)
    fragment = Fragment(
        slide_id="a",
        plan_fp="1" * 12,
        shard=0,
        first_tile=0,
        xy=xy[shard],
        tissue=tissue[shard],
        embedding=vectors[shard],
    )
    put_fragment(Store.open(str(tmp_path)), layout, fragment)
    size = (tmp_path / layout.fragment("a", "1" * 12, 0)).stat().st_size
    assert size == pytest.approx(slide_work(256).staged_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("mpp", "codec", "basis"),
    [
        (0.5, "jpeg", "measured"),
        (0.25, "jpeg", "measured"),
        (0.5, "jpeg2000", "measured"),
        (0.125, "jpeg", "expected"),
        (0.3, "jpeg", "expected"),
        (0.25, "jpeg2000", "expected"),
        (0.5, "", "expected"),
        (0.5, "lzw", "assumed"),
    ],
)
def test_only_what_was_measured_says_so(mpp: float, codec: str, basis: str) -> None:
    seconds, said = read_at(mpp, codec)
    assert said == basis
    assert seconds >= read_at(0.5)[0]


def test_reading_costs_more_where_there_is_more_to_do() -> None:
    seconds = [read_at(mpp)[0] for mpp in (0.5, 0.25, 0.125)]
    assert seconds == sorted(seconds)
    assert read_at(0.35)[0] > read_at(0.5)[0] + 1 / costs.RESAMPLED_TILES_PER_S[1.1]
    # Twice the scale is four times the pixels.
    assert read_at(0.25, "jpeg2000")[0] > 4 / costs.JPEG2000_TILES_PER_S
    stained, basis = read_at(0.5, normalise=NormaliseRule(colour="srgb", stain="macenko"))
    assert stained == pytest.approx(1 / costs.DIRECT_TILES_PER_S + 1 / 870 + 1 / 1900)
    assert basis == "expected"


@given(st.lists(st.integers(0, 30_000), max_size=6), st.floats(0, 100))
def test_a_job_costs_what_its_slides_cost(tiles: list[int], usd: float) -> None:
    prices = Prices(usd_per_gpu_hour=usd, usd_per_cpu_hour=usd, usd_per_gb_egress=usd)
    whole = cost(sum(map(slide_work, tiles), Work()), prices)
    each = [cost(slide_work(n), prices) for n in tiles]
    assert whole.usd == pytest.approx(sum(one.usd for one in each))
    assert whole.usd_per_month == pytest.approx(sum(one.usd_per_month for one in each))
    for name, item in whole.items.items():
        assert item.amount == pytest.approx(sum(one.items[name].amount for one in each))


def test_a_sum_is_as_sure_as_its_least_sure_slide() -> None:
    guessed = replace(slide_work(10), reading_basis="assumed")
    for pair in ((guessed, slide_work(10)), (slide_work(10), guessed)):
        assert cost(sum(pair, Work())).items["reading_cpu_hours"].basis == "assumed"


@pytest.mark.parametrize("name", list(Prices.model_fields))
def test_every_price_is_asked_for(name: str) -> None:
    nothing = Prices(**dict.fromkeys(Prices.model_fields, 0.0))
    dear = cost(slide_work(10_000), nothing.model_copy(update={name: 10_000.0}))
    assert cost(slide_work(10_000), nothing).usd == 0
    assert (dear.usd_per_month if "month" in name else dear.usd) > 1


def test_plan_tells_what_a_job_costs(tmp_path: Path) -> None:
    slide, prices = tmp_path / "a.svs", tmp_path / "prices.yaml"
    write_slide(slide, width_px=2048, height_px=2048, mpp=0.5, levels=2)
    plan = ("plan", "--slides", str(slide), "--model", "toy", "--json")
    plain = CliRunner().invoke(app, plan)
    assert plain.exit_code == 0, plain.output
    planned = json.loads(plain.stdout.splitlines()[-1])
    told = planned["cost"]
    assert told["unpriced"] == ["gpu_hours", "reading_cpu_hours"]
    assert "sum without GPU-hours and CPU-hours of reading" in plain.stdout
    tiles, items = planned["tiles"], told["items"]
    assert 0 < tiles <= 256
    assert items["reading_cpu_hours"]["amount"] == pytest.approx(
        tiles / costs.DIRECT_TILES_PER_S / 3600, rel=0.01
    )
    assert items["reading_cpu_hours"]["basis"] == "measured"
    assert (items["output_puts"]["amount"], items["output_gets"]["amount"]) == (4, 2)
    assert items["slide_gets"]["amount"] == planned["per_slide"][0]["gets"] > 4
    assert told["usd"] == pytest.approx(
        0.0004 / 1000 * (2 + items["slide_gets"]["amount"]) + 0.005 / 1000 * (4 + 0.01)
    )
    prices.write_text("usd_per_gpu_hour: 36000\nusd_per_cpu_hour: 0\nusd_per_1000_get: 0\n")
    more = ("--prices", str(prices), "--tiles-per-s", "10")
    ended = CliRunner().invoke(app, [*plan, *more])
    priced = json.loads(ended.stdout.splitlines()[-1])["cost"]
    assert priced["unpriced"] == []
    assert priced["items"]["gpu_hours"]["basis"] == "given"
    assert priced["usd"] == pytest.approx(tiles, rel=0.01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("usd_per_gpu_hours: 2\n", "'usd_per_gpu_hours' is no known key; did you mean"),
        ("euros: 2\n", "'euros' is no known key; its keys are in infra/costs/prices.yaml"),
        ("usd_per_gb_month: -1\n", "'usd_per_gb_month': Input should be greater"),
        ("usd_per_gb_month: .nan\n", "'usd_per_gb_month': Input should be a finite number"),
        ("- 1\n", "must hold keys and values, such as 'usd_per_gpu_hour: 2.5'"),
    ],
)
def test_a_price_list_that_is_wrong_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"prices\.yaml") as told:
        costs.load_prices(str(tmp_path / "prices.yaml"))
    assert words in str(told.value)


def test_plan_refuses_a_misspelled_price_before_it_reads_slides(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("usd_per_gpu_hours: 2\n")
    outcome = historay("plan", "--slides", "none.svs", "--prices", str(tmp_path / "prices.yaml"))
    assert outcome.code == 2
    assert "'usd_per_gpu_hours'" in outcome.error


def test_a_price_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--prices: .*no\.yaml"):
        costs.load_prices(str(tmp_path / "no.yaml"))


def test_no_work_costs_nothing() -> None:
    assert cost(Work()).usd == cost(Work()).usd_per_month == 0
