"""The service's Prometheus metrics: counted where things happen, gathered for `/metrics`.

Every process has a registry of its own, and every sample the label `replica`, so that those of
several processes can stand in one page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TILES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1)


class IngressMetrics:
    """What a process that speaks HTTP counts."""

    def __init__(self, replica: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._replica = replica
        self._requests = Histogram(
            "historay_request_seconds",
            "Time of a request, from its first byte to its reply.",
            ("replica", "route", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._refused = Counter(
            "historay_refused",
            "Requests that got an error, by its type.",
            ("replica", "route", "cause"),
            registry=self._registry,
        )
        self._tiles = Counter(
            "historay_tiles",
            "Tiles embedded.",
            ("replica", "route", "model"),
            registry=self._registry,
        )
        self._in_hand = Gauge(
            "historay_tiles_in_hand",
            "Tiles of accepted requests.",
            ("replica",),
            registry=self._registry,
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(self._replica, route, str(status)).observe(seconds)

    def refused(self, route: str, cause: str) -> None:
        """A request got an error of the type `cause`."""
        self._refused.labels(self._replica, route, cause).inc()

    def embedded(self, route: str, model: str, tiles: int) -> None:
        """Tiles of a request were embedded."""
        self._tiles.labels(self._replica, route, model).inc(tiles)

    def watch_in_hand(self, value: Callable[[], float]) -> None:
        """Ask `value` for the tiles in hand whenever metrics are gathered."""
        self._in_hand.labels(self._replica).set_function(value)

    def collect(self) -> list[Metric]:
        """All that was counted; survives pickling."""
        return list(self._registry.collect())


class EncoderMetrics:
    """What a replica with an encoder counts."""

    def __init__(self, model: str, replica: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._labels = (model, replica)

        def histogram(name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(
                name, description, ("model", "replica"), buckets=buckets, registry=self._registry
            )
            child: Histogram = family.labels(*self._labels)
            return child

        self._queue_s = histogram(
            "historay_queue_seconds", "Wait of a request for the device.", _SECONDS
        )
        self._device_s = histogram(
            "historay_device_seconds", "Time of a batch on the device.", _SECONDS
        )
        self._size = histogram("historay_batch_tiles", "Tiles of a batch.", _TILES)
        self._fill = histogram(
            "historay_batch_fill", "Share of a batch's places that held a tile.", _SHARES
        )
        self._failed_updates = Counter(
            "historay_failed_updates",
            "Updates of the model that failed; the old one serves on.",
            ("model", "replica"),
            registry=self._registry,
        ).labels(*self._labels)
        self._waiting = Gauge(
            "historay_tiles_waiting",
            "Tiles that wait for the device.",
            ("model", "replica"),
            registry=self._registry,
        ).labels(*self._labels)

    def batch(self, tiles: int, places: int, device_s: float) -> None:
        """A batch of `tiles` in `places` is done."""
        self._size.observe(tiles)
        self._fill.observe(tiles / places)
        self._device_s.observe(device_s)

    def queued(self, seconds: float) -> None:
        """A request's first tile went to the device after `seconds`."""
        self._queue_s.observe(seconds)

    def failed_update(self) -> None:
        """A new encoder could not be loaded."""
        self._failed_updates.inc()

    def watch_waiting(self, value: Callable[[], float]) -> None:
        """Ask `value` for the tiles that wait whenever metrics are gathered."""
        self._waiting.set_function(value)

    def collect(self) -> list[Metric]:
        """All that was counted; survives pickling."""
        return list(self._registry.collect())


def page(metrics: Iterable[Metric]) -> bytes:
    """Prometheus' text format of metrics from several processes, each family once."""
    families: dict[str, Metric] = {}
    for metric in metrics:
        family = families.setdefault(
            metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
        )
        # When a counter began says nothing that its restart does not.
        family.samples.extend(s for s in metric.samples if not s.name.endswith("_created"))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gathered(families.values()))
    return generate_latest(registry)


class _Gathered(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
