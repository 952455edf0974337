"""Watching a job from outside: what Prometheus scrapes from Ray, and what the logs hold."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ray_pipeline.metrics import METRICS, READS, STAGES
from ray_pipeline.synthetic import write_slide
from tests.commands import Outcome, historay
from tests.servers.ray_head import RayHead, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SCRAPE_S = 60


@dataclass(frozen=True)
class Watched:
    """A job of two good slides, one without tissue and one that is none, seen from outside."""

    outcome: Outcome
    samples: dict[str, list[tuple[dict[str, str], float]]]
    """(labels, value) of every sample of ours, by the metric's exported name."""
    worker_lines: list[dict[str, Any]]

    def sums(self, name: str, label: str) -> dict[str, float]:
        """A metric's samples of all processes added up, by one of its labels."""
        sums: Counter[str] = Counter()
        for labels, value in self.samples[name]:
            sums[labels[label]] += value  # type: ignore[assignment]
        return dict(sums)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    slides = folder / "slides"
    slides.mkdir()
    write_slide(slides / "a.svs", width_px=6144, height_px=6144, seed=1)
    write_slide(slides / "b.svs", width_px=1024, height_px=1024, seed=2)
    write_slide(slides / "blank.svs", width_px=1024, height_px=1024, seed=3, blank=True)
    (slides / "text.svs").write_text("these are the notes of the pathologist")
    job = ("--slides", f"{slides}/", "--output", str(folder / "out"), "--model", "toy", "--json")
    with ray_head(folder / "head.log") as head:
        outcome = historay("embed", *job, env=head.env)
        samples = scraped(head)
        lines = [
            json.loads(line)
            for path in head.logs.glob("worker-*.err")
            for line in path.read_text().splitlines()
            if line.startswith("{")
        ]
        yield Watched(outcome, samples, lines)


def scraped(head: RayHead) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples of the job's metrics, once those of its driver have come: it sends them last."""
    deadline = time.monotonic() + SCRAPE_S
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    while "ray_historay_slides_total" not in found:
        assert time.monotonic() < deadline, "no metrics of the driver on Ray's metrics port"
        time.sleep(0.5)
        try:
            page = urllib.request.urlopen(head.metrics_url, timeout=5).read().decode()
        except OSError:
            continue
        found = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name.startswith("ray_historay_"):
                    found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_prometheus_finds_every_metric_and_they_agree_with_the_report(watched: Watched) -> None:
    assert watched.outcome.code == 3, watched.outcome.stderr
    report = watched.outcome.json
    silent = READS["retries"].exported  # nothing was to be tried again
    assert set(watched.samples) == {spec.exported for spec in METRICS} - {silent}
    assert watched.sums("ray_historay_slides_total", "status") == {
        "done": 2,
        "empty": 1,
        "failed": 1,
    }
    assert watched.sums("ray_historay_failures_total", "kind") == {"not-a-slide": 1}
    tiles = watched.sums("ray_historay_tiles_total", "stage")
    assert tiles == dict.fromkeys(STAGES, report["tiles"])
    for name in ("gets", "bytes_fetched", "bytes_needed"):
        by_stage = watched.sums(READS[name].exported, "stage")
        assert set(by_stage) <= {"plan", "read"}
        assert sum(by_stage.values()) == report[name]
    seconds = watched.sums("ray_historay_stage_seconds_total", "stage")
    assert set(seconds) == set(STAGES)
    busy = watched.sums("ray_historay_device_busy_seconds_total", "recipe")
    assert busy == {report["recipe_fp"]: pytest.approx(seconds["encode"])}
    for gauge in ("slides_left", "commits_in_flight", "queue_tiles"):
        assert watched.sums(f"ray_historay_{gauge}", "recipe") == {report["recipe_fp"]: 0}


def test_every_line_of_the_driver_is_json_and_tells_the_run(watched: Watched) -> None:
    run = watched.outcome.json["run"]
    lines = [json.loads(line) for line in watched.outcome.stderr.splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    assert {line["run"] for line in lines} == {run}
    assert any(line.get("progress", {}).get("slides_done") == 3 for line in lines)
    (failed,) = [line for line in lines if line["level"] == "WARNING"]
    told = failed["slide_id"], failed["stage"], failed["kind"]
    assert told == ("text", "plan", "not-a-slide")


def test_workers_log_every_shard_at_every_stage(watched: Watched) -> None:
    run = watched.outcome.json["run"]
    assert {line["run"] for line in watched.worker_lines} == {run}
    done = {
        (line["stage"], line["slide_id"], line.get("shard"))
        for line in watched.worker_lines
        if line["level"] == "INFO"
    }
    shards = {shard for stage, slide, shard in done if (stage, slide) == ("read", "a")}
    assert len(shards) > 1
    for stage in ("read", "encode", "stage"):
        assert {shard for s, slide, shard in done if (s, slide) == (stage, "a")} == shards
    for stage in ("plan", "commit"):
        assert {(stage, slide, None) for slide in ("a", "b", "blank")} <= done
    (failed,) = [line for line in watched.worker_lines if line["level"] == "WARNING"]
    assert (failed["slide_id"], failed["kind"]) == ("text", "not-a-slide")
