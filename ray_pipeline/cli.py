"""The `historay` command: parse, call, print, exit code. Nothing is decided here.

Exit codes: 0 all done, 1 could not run, 2 the command or settings must change, 3 some slides
failed (each is named), 4 stopped on request.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ray_pipeline.console import (
    EXIT_ERROR,
    EXIT_SOME_FAILED,
    EXIT_STOPPED,
    EXIT_USAGE,
    AsJson,
    Cells,
    aligned,
    say,
)
from ray_pipeline.dataset.report import RunReport, versions
from ray_pipeline.encoders.registry import MODELS
from ray_pipeline.errors import HistorayError, UsageError
from ray_pipeline.flags import with_settings_flags
from ray_pipeline.outputs import errors, export, import_coords, query, status
from ray_pipeline.progress import Reporter
from ray_pipeline.search import index, similar
from ray_pipeline.settings import JobSettings, load_settings
from ray_pipeline.stopping import Stop

STOPPED = "stopped on request; resume with the same command.\n"
"""What standard error ends with on exit code 4."""
OOM_RETRIES = "5"
"""Times that a task is started again which Ray killed for its node's memory: half a minute."""

app = typer.Typer(
    name="historay",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
weights_app = typer.Typer(help="Work on weights files.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

Config = Annotated[str | None, typer.Option(help="YAML file with the same keys as the flags.")]


def _print_version(asked: bool) -> None:
    if asked:
        say(f"historay {versions()['historay']}")
        raise typer.Exit


@app.callback()
def historay(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Slides in object storage become a Parquet dataset of tile embeddings. Research use only."""


def main() -> NoReturn:
    """Run the command; every error of ours is one sentence on standard error."""
    try:
        app(standalone_mode=True)
    except HistorayError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_ERROR)
    sys.exit(0)


@app.command()
@with_settings_flags
def embed(config: Config = None, as_json: AsJson = False, *, flags: dict[str, Any]) -> None:
    """Embed slides: one Parquet file of tile embeddings per slide, each slide exactly once.

    The same command run again goes on where an earlier run stopped, and retries what failed.
    """
    # A copy: standard error is closed to Ray's messages for a while.
    stop = Stop(partial(_exit_at_once, os.dup(sys.__stderr__.fileno()) if sys.__stderr__ else None))
    with stop.listening():
        report = _embedded(load_settings(config, flags), stop)
    say(_told(report))
    if as_json:
        say(json.dumps(report.to_dict()))
    if report.stopped:
        sys.stderr.write(STOPPED)
        raise typer.Exit(EXIT_STOPPED)
    raise typer.Exit(EXIT_SOME_FAILED if report.slides_failed else 0)


def _embedded(settings: JobSettings, stop: Stop) -> RunReport:
    # Ray reads it once, while it is imported. By default it starts such a task again without end.
    os.environ.setdefault("RAY_task_oom_retries", OOM_RETRIES)
    from ray_pipeline.cluster import disconnect  # noqa: PLC0415 (Ray takes seconds)
    from ray_pipeline.pipeline import embed as run_job  # noqa: PLC0415

    # Ray prints what its nodes have to say on standard output, which is the report's alone.
    with redirect_stdout(sys.stderr):
        report = run_job(settings, Reporter(log_format=settings.log_format), stop)
        disconnect()
    return report


@app.command()
@with_settings_flags
def plan(
    config: Config = None,
    tiles_per_s: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Pace of one GPU, for the GPU-hours; by default that expected of one H100.",
        ),
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(help="YAML file of prices (infra/costs); default: S3's in us-east-1."),
    ] = None,
    as_json: AsJson = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Show what a job would do and cost: slides, tiles, bytes, requests, hours, dollars.

    Reads the overviews only; --output is not needed.
    """
    from ray_pipeline.costs import Prices, load_prices  # noqa: PLC0415 (as below)
    from ray_pipeline.estimate import (  # noqa: PLC0415 (what reads slides takes seconds)
        estimate_slides,
        h100_tiles_per_s,
        job_cost,
        summary,
    )

    settings = load_settings(config, flags, defaults={"output": "unused"})
    price_list = load_prices(prices) if prices else Prices()
    pace = tiles_per_s or h100_tiles_per_s(settings.model)
    with Reporter(log_format=settings.log_format) as reporter:
        estimates = estimate_slides(settings, reporter.show)
    rows: list[Cells] = [("slide", "tiles", "level", "mpp", "MB to fetch", "")]
    for item in estimates:
        rows.append(
            (
                item.slide_id,
                str(item.n_tiles),
                "-" if item.level is None else str(item.level),
                "-" if item.mpp_achieved is None else f"{item.mpp_achieved:.4g}",
                f"{item.fetch_bytes / 1e6:.1f}",
                item.failure.reason if item.failure else "",
            )
        )
    total = summary(estimates, pace)
    cost = job_cost(estimates, settings.model, tiles_per_s=tiles_per_s, prices=price_list)
    say(aligned(rows))
    say(
        f"{total['slides']} slides, {total['tiles']} tiles, "
        f"{sum(item.fetch_bytes for item in estimates) / 1e9:.3f} GB to fetch, "
        f"{total['gpu_hours']} GPU-hours at {pace:g} tiles/s"
    )
    say(aligned(cost.rows()))
    if as_json:
        say(json.dumps({**total, "cost": cost.to_dict()}))
    raise typer.Exit(EXIT_SOME_FAILED if total["slides_failed"] else 0)


@app.command()
def inspect(
    uri: str,
    mpp_override: Annotated[
        float | None, typer.Option(help="Microns per pixel of level 0.")
    ] = None,
    mpp: Annotated[
        float, typer.Option(min=0.05, max=20, help="Microns per pixel to ask for.")
    ] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Show a slide's format, levels, microns per pixel, and how its tiles would be read."""
    from ray_pipeline.slides.grid import TilingRule, choose_geometry  # noqa: PLC0415
    from ray_pipeline.slides.slide import open_slide  # noqa: PLC0415

    slide = open_slide(uri, mpp_override=mpp_override)
    try:
        geometry = choose_geometry(slide.levels, TilingRule(mpp=mpp), slide_id=slide.slide_id)
        rows: list[Cells] = [("level", "size, px", "downsample", "mpp")]
        for level in slide.levels:
            size, level_mpp = (
                f"{level.width_px} x {level.height_px}",
                slide.mpp.value * level.downsample,
            )
            rows.append((str(level.index), size, f"{level.downsample:g}", f"{level_mpp:.4g}"))
        found = "none" if slide.mpp.found is None else f"{slide.mpp.found:.4g}"
        say(f"{slide.uri}: {slide.vendor}, {slide.size_bytes / 1e6:.1f} MB, etag {slide.etag}")
        say(f"mpp used: {slide.mpp.value:.4g} (from {slide.mpp.source}); in the file: {found}")
        say(aligned(rows))
        how = f"read at 1/{geometry.reduce}" if geometry.reduce > 1 else "as they are"
        if geometry.side_px != TilingRule.tile_px:
            how += f", resampled from {geometry.side_px:.4g} px"
        say(
            f"tiles at {mpp:g} mpp: level {geometry.level}, {how}, "
            f"achieved {geometry.mpp_achieved:.4g} mpp; reader: {slide.reader}"
        )
        if as_json:
            facts = {
                "slide_id": slide.slide_id,
                "uri": slide.uri,
                "etag": slide.etag,
                "bytes": slide.size_bytes,
                "vendor": slide.vendor,
                "mpp": asdict(slide.mpp),
                "levels": [asdict(level) for level in slide.levels],
                "reading": asdict(geometry),
                "reader": slide.reader,
                **asdict(slide.counts),
            }
            say(json.dumps(facts))
    finally:
        slide.close()


@app.command()
@with_settings_flags
def preview(
    uri: str,
    out: Annotated[str, typer.Option(help="Where the PNG goes: a path or a store URI.")],
    config: Config = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Draw a slide's overview with the tissue's contour and the tiles that would be kept."""
    from ray_pipeline.preview import draw_preview, save_preview  # noqa: PLC0415
    from ray_pipeline.recipe import tiling_of, tissue_rule_of  # noqa: PLC0415
    from ray_pipeline.slides.slide import open_slide  # noqa: PLC0415

    settings = load_settings(config, {**flags, "slides": [uri]}, defaults={"output": "unused"})
    slide = open_slide(uri, mpp_override=settings.mpp_override)
    try:
        picture, tile_plan = draw_preview(
            slide,
            tiling_of(settings),
            tissue_rule_of(settings),
            max_tiles=settings.max_tiles_per_slide,
        )
    finally:
        slide.close()
    save_preview(picture, out)
    say(f"{out}: {tile_plan.n_tiles} tiles, {tile_plan.facts['tissue_mm2']:.2f} mm2 of tissue")


app.command()(status)
app.command()(errors)
app.command()(query)
app.command()(similar)
app.command()(index)
app.command()(export)
app.command(name="import-coords")(import_coords)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models: vector, tile, mpp, licence, and what of it no primary source confirmed."""
    rows: list[Cells] = [
        (
            *("model", "dim", "tile, px", "mpp", "pooling", "parameters", "licence"),
            *("non-commercial", "gated", "unverified"),
        )
    ]
    for spec in MODELS.values():
        rows.append(
            (
                *(spec.name, str(spec.dim), str(spec.tile_px), f"{spec.mpp:.4g}", spec.pooling),
                *(f"{spec.parameters / 1e6:,.1f} M", spec.licence),
                "yes" if spec.non_commercial else "no",
                "yes" if spec.gated else "no",
                ", ".join(spec.unverified) or "-",
            )
        )
    say(aligned(rows))
    if as_json:
        say(json.dumps({"models": [asdict(spec) for spec in MODELS.values()]}, default=dict))


@weights_app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Weights as .bin, .pth, .pt or .torch (a pickle).")],
    target: Annotated[str, typer.Argument(help="Path of the .safetensors file to write.")],
) -> None:
    """Convert a pickle of weights to safetensors once; tensors and digest stay the same."""
    from ray_pipeline.encoders.tensors import convert_to_safetensors  # noqa: PLC0415

    digest = convert_to_safetensors(Path(source), Path(target))
    say(f"{target}: weights digest {digest}")


@weights_app.command()
def fetch(
    source: Annotated[str, typer.Argument(help="The weights' URI in a store.")],
    target: Annotated[str, typer.Argument(help="Path of the file to write.")],
    sha256: Annotated[str, typer.Option(help="SHA-256 that the file must have, 64 hex digits.")],
) -> None:
    """Bring weights from a store to this machine, and refuse any but those of the digest given."""
    from ray_pipeline.encoders.weights import fetch_weights  # noqa: PLC0415

    fetched = fetch_weights(source, Path(target), sha256)
    say(f"{target}: {'fetched' if fetched else 'there already'}, SHA-256 as asked for")


@app.command()
@with_settings_flags
def doctor(config: Config = None, as_json: AsJson = False, *, flags: dict[str, Any]) -> None:
    """Check Ray, device, weights, stores and versions: one line each, with the mend."""
    from ray_pipeline.doctor import examine  # noqa: PLC0415

    findings = examine(config, flags)
    for finding in findings:
        say(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}: {finding.sentence}")
    if as_json:
        say(json.dumps({"findings": [asdict(finding) for finding in findings]}))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else EXIT_ERROR)


@app.command()
def demo(
    folder: Annotated[str, typer.Option(help="Where slides and dataset go.")] = "demo-output",
) -> None:
    """Make three synthetic slides, embed them with the toy model, and query the result."""
    from ray_pipeline.demo import run_demo  # noqa: PLC0415

    raise typer.Exit(run_demo(folder, say))


def _told(report: RunReport) -> str:
    total = (
        f"{report.slides_done} slides done ({report.slides_empty} empty), "
        f"{report.slides_finished_before} finished before, {report.slides_failed} failed; "
        f"{report.tiles} tiles in {report.seconds:.1f} s ({report.tiles_per_s:g} tiles/s); "
        f"recipe {report.recipe_fp} in {report.output}"
    )
    lines = [total]
    if report.batch_fill:
        lines.append(
            f"  encoders computed {report.device_busy_share:.0%} of the time, "
            f"in batches {report.batch_fill:.0%} full"
        )
    if report.slides_passed_over:
        lines.append(f"  {report.slides_passed_over} unfinished slides are of kinds not in --retry")
    for failure in report.failures:
        lines.append(
            f"  {failure['slide_id']}: {failure['stage']}: {failure['kind']}: {failure['reason']}"
        )
    if untold := report.slides_failed - len(report.failures):
        lines.append(f"  and {untold} more: see `historay errors {report.output}`")
    return "\n".join(lines)


def _exit_at_once(stderr: int | None) -> NoReturn:
    # No clean-up, which may be what hangs; and no buffered stream, which may be in use.
    if stderr is not None:
        os.write(stderr, STOPPED.encode())
    os._exit(EXIT_STOPPED)
