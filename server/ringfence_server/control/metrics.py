"""What Prometheus is told: requests as they are served, and the site as it stands when it asks.

Of holders it learns their name and what fraction of their budget is left, and no count of records or uses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class SiteFigures:
    """A site in numbers.

    Attributes:
        runs: Number of runs by state.
        rounds: Rounds that were closed, over all runs.
        refusals: Refusals by the clause that decided.
        epsilon_left: Fraction of each holder's privacy budget that is left, 0 to 1.
    """

    runs: Mapping[str, int]
    rounds: int
    refusals: Mapping[str, int]
    epsilon_left: Mapping[str, float]


class _Site(Collector):
    def __init__(self, figures: Callable[[], SiteFigures]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        return []  # so that registering it asks nothing of the site

    def collect(self) -> Iterator[Metric]:
        found = self._figures()
        runs = GaugeMetricFamily("ringfence_runs", "Runs by state.", labels=["state"])
        for state, number in sorted(found.runs.items()):
            runs.add_metric([state], number)
        yield runs
        yield CounterMetricFamily("ringfence_rounds", "Rounds that were closed.", value=found.rounds)
        refusals = CounterMetricFamily("ringfence_refusals", "Refusals by deciding clause.", labels=["clause"])
        for clause, number in sorted(found.refusals.items()):
            refusals.add_metric([clause], number)
        yield refusals
        left = GaugeMetricFamily(
            "ringfence_epsilon_left_ratio", "Fraction of a holder's privacy budget that is left.", labels=["holder"]
        )
        for holder, ratio in sorted(found.epsilon_left.items()):
            left.add_metric([holder], ratio)
        yield left


class Metrics:
    """The metrics of one control plane.

    Args:
        figures: Asked at each scrape.
    """

    def __init__(self, figures: Callable[[], SiteFigures]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Site(figures))
        self._seconds = Histogram(
            "ringfence_request_seconds",
            "Seconds from a request to the start of its answer.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._answers = Counter(
            "ringfence_requests", "Answers.", ["method", "route", "status"], registry=self._registry
        )
        self.streams = Gauge("ringfence_event_streams", "Event streams that are open.", registry=self._registry)

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer. `route` is the template, so that ids make no series."""
        self._seconds.labels(method, route).observe(seconds)
        self._answers.labels(method, route, str(status)).inc()

    def exposition(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
