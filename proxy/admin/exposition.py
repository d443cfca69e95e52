"""Merged counters as Prometheus metrics, by a custom collector that reads plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from proxy import metrics
from proxy.admin.source import Status

PREFIX: Final = "pilotwire_"


class StatusCollector(Collector):
    """Yields every declared metric of one ``Status``."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        for declared in metrics.WORKER_METRICS:
            family = _family(declared)
            if declared.label:
                found = {**dict.fromkeys(declared.values, 0.0), **_labelled(self._status, declared.attribute)}
                for label, value in sorted(found.items()):
                    family.add_metric([label], value)
            else:
                family.add_metric([], self._status.totals.get(declared.attribute, 0))
            yield family
        yield self._latency()
        yield from self._own()

    def _latency(self) -> HistogramMetricFamily:
        totals = self._status.totals
        counts = accumulate(totals.get(key, 0) for key in metrics.LATENCY_KEYS)
        bounds = [*(str(bound) for bound in metrics.LATENCY_BOUNDS), "+Inf"]
        return HistogramMetricFamily(
            f"{PREFIX}statement_latency_seconds",
            metrics.LATENCY_HELP,
            buckets=list(zip(bounds, counts, strict=True)),
            sum_value=totals.get(metrics.LATENCY_SUM, 0),
        )

    def _own(self) -> Iterator[Metric]:
        for name, declared in metrics.SUPERVISOR_METRICS.items():
            family = _family(declared)
            if name == "memory":
                for process, size in sorted(self._status.memory.items()):
                    family.add_metric([process], size)
            else:
                family.add_metric([], float(getattr(self._status, name)))
            yield family


def _family(declared: metrics.Metric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    return kind(PREFIX + declared.name, declared.help, labels=[declared.label] if declared.label else [])


def _labelled(status: Status, attribute: str) -> dict[str, float]:
    return dict(metrics.labelled(status.totals, attribute))


def render(status: Status, accept: str) -> tuple[bytes, str]:
    """The exposition in the form that the ``Accept`` header asks for, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
