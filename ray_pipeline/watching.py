"""What each stage tells of its work while it works: metrics for Prometheus, lines of the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray_pipeline.logs import worker_log
from ray_pipeline.rows import Failure


class Watch:
    """Hears what becomes of a stage's shards. This one tells nobody: for stages by themselves."""

    def done(self, slide_id: str, shard: int | None, *, tiles: int, **costs: Any) -> None:
        """A shard has left the stage, or without a shard a whole slide; `costs` is what it took.

        Of them are known: seconds, device_s, and the names of `ReadCounts`.
        """

    def failed(self, slide_id: str, shard: int | None, failure: Failure) -> None:
        """The stage could not do it."""

    def queued(self, tiles: int) -> None:
        """So many tiles wait in this process."""


UNWATCHED = Watch()


@dataclass(frozen=True)
class StageWatch(Watch):
    """Counts what a stage does, and writes it to the log of whichever worker does it."""

    stage: str
    """One of `ray_pipeline.metrics.STAGES`."""
    run: str
    """Name of the run."""
    recipe_fp: str
    """Fingerprint of the recipe."""

    def done(self, slide_id: str, shard: int | None, *, tiles: int, **costs: Any) -> None:
        # Ray takes a second to import: stages without a watch never pay it.
        from ray_pipeline import metrics  # noqa: PLC0415

        counted = metrics.job_metrics(self.recipe_fp)
        counted.count(metrics.TILES, tiles, stage=self.stage)
        counted.count(metrics.STAGE_SECONDS, costs.get("seconds", 0), stage=self.stage)
        counted.count(metrics.BUSY_SECONDS, costs.get("device_s", 0))
        counted.count_reads(self.stage, costs)
        facts = self._facts(slide_id, shard) | {"tiles": tiles} | costs
        worker_log().info(f"{self.stage} done", extra={"facts": facts})

    def failed(self, slide_id: str, shard: int | None, failure: Failure) -> None:
        facts = self._facts(slide_id, shard) | {"kind": failure.kind}
        worker_log().warning(failure.reason, extra={"facts": facts})

    def queued(self, tiles: int) -> None:
        from ray_pipeline import metrics  # noqa: PLC0415

        metrics.job_metrics(self.recipe_fp).show(metrics.QUEUE_TILES, tiles)

    def _facts(self, slide_id: str, shard: int | None) -> dict[str, Any]:
        return {"run": self.run, "stage": self.stage, "slide_id": slide_id, "shard": shard}
