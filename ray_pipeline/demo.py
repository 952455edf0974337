"""`historay demo`: the whole job on three made-up slides, and a query over its output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb

from ray_pipeline.pipeline import embed
from ray_pipeline.progress import Reporter
from ray_pipeline.settings import JobSettings
from ray_pipeline.synthetic import write_slide

QUERY = """\
select slide_id, count(*) as tiles, round(avg(tissue), 3) as mean_tissue,
       round(avg(list_cosine_similarity(embedding, mean_of_slide)), 3) as likeness_to_mean
from read_parquet('{embeddings}/*/*/embeddings.parquet', hive_partitioning = true)
join (select slide_id, mean_embedding as mean_of_slide from '{slides}/*/slides.parquet')
using (slide_id)
group by slide_id order by slide_id"""
"""Shown with its answer: tiles and vectors joined to the slides table."""


def run_demo(folder: str, say: Callable[[str], None]) -> int:
    """Write slides and dataset below `folder`; returns the job's exit code."""
    slides, output = Path(folder) / "slides", Path(folder) / "dataset"
    slides.mkdir(parents=True, exist_ok=True)
    made = {
        "biopsy": {"width_px": 3072, "height_px": 2048, "seed": 1, "pen": False},
        "resection": {"width_px": 4096, "height_px": 3072, "seed": 2, "pen": True},
        "blank": {"width_px": 2048, "height_px": 2048, "seed": 3, "blank": True},
    }
    for name, options in made.items():
        path = slides / f"{name}.svs"
        if not path.exists():
            write_slide(path, **options)  # type: ignore[arg-type]
    say(f"three synthetic slides are in {slides}; embedding them with the toy model")
    settings = JobSettings(slides=[f"{slides}/"], output=str(output), model="toy")
    report = embed(settings, Reporter())
    query = QUERY.format(embeddings=output / "embeddings", slides=output / "slides")
    say(f"{report.slides_done} slides done, {report.slides_finished_before} finished before")
    say(f"\n{query}\n")
    say(str(duckdb.sql(query)))
    return 3 if report.slides_failed else 0
