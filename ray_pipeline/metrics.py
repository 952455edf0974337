"""Ray metrics of the batch job, as Prometheus scrapes them from every node."""

from __future__ import annotations

from dataclasses import asdict

from ray.util.metrics import Counter

from ray_pipeline.ranged_file import ReadCounts


class ReadMetrics:
    """Counters of what reading slides has cost: `historay_read_gets`, `_bytes_fetched`, ..."""

    def __init__(self, recipe_fp: str) -> None:
        self._counters = {
            name: Counter(f"historay_read_{name}", description, tag_keys=("recipe",))
            for name, description in (
                ("gets", "Ranged GETs of slide data."),
                ("bytes_fetched", "Bytes of slide data fetched."),
                ("bytes_needed", "Bytes of compressed tiles that were decoded."),
                ("retries", "Ranged GETs sent again after a short, broken or stalled body."),
            )
        }
        for counter in self._counters.values():
            counter.set_default_tags({"recipe": recipe_fp})

    def count(self, counts: ReadCounts) -> None:
        """Add what one slide has cost."""
        for name, value in asdict(counts).items():
            if value > 0:
                self._counters[name].inc(value)
