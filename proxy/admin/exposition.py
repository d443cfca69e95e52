"""Merged counters as Prometheus metrics, by a custom collector that reads plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from proxy import metrics, planner_metrics
from proxy.admin.source import PlannerStatus, Status

PREFIX: Final = "pilotwire_"


class StatusCollector(Collector):
    """Yields every declared metric of one ``Status``."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        for declared in (*metrics.WORKER_METRICS, *planner_metrics.PLANNER_COUNTERS):
            family = _family(declared)
            if declared.label:
                found = {**dict.fromkeys(declared.values, 0.0), **_labelled(self._status, declared.attribute)}
                for label, value in sorted(found.items()):
                    family.add_metric([label], value)
            else:
                family.add_metric([], self._status.totals.get(declared.attribute, 0))
            yield family
        for histogram in (*metrics.WORKER_HISTOGRAMS, *planner_metrics.HISTOGRAMS):
            yield self._histogram(histogram)
        yield from self._own()
        yield from _planner(self._status.planner or PlannerStatus())

    def _histogram(self, declared: metrics.Histogram) -> HistogramMetricFamily:
        """From one count for each bucket, under ``attribute{bound}``, and ``attribute_sum``."""
        totals, attribute = self._status.totals, declared.attribute
        labels = [*(str(bound) for bound in declared.bounds), "+Inf"]
        counts = accumulate(totals.get(f"{attribute}{{{label}}}", 0) for label in labels)
        return HistogramMetricFamily(
            PREFIX + declared.name,
            declared.help,
            buckets=list(zip(labels, counts, strict=True)),
            sum_value=totals.get(f"{attribute}_sum", 0),
        )

    def _own(self) -> Iterator[Metric]:
        for name, declared in metrics.SUPERVISOR_METRICS.items():
            family = _family(declared)
            if name == "memory":
                planner = self._status.planner
                extra = {"planner": planner.memory} if planner is not None and planner.memory else {}
                for process, size in sorted({**self._status.memory, **extra}.items()):
                    family.add_metric([process], size)
            else:
                family.add_metric([], float(getattr(self._status, name)))
            yield family


def _planner(status: PlannerStatus) -> Iterator[Metric]:
    for declared in planner_metrics.PLANNER_GAUGES:
        family = _family(declared)
        family.add_metric([], float(getattr(status, declared.attribute)))
        yield family
    info = _family(planner_metrics.MODEL_INFO)
    for model in status.models:
        if model.state == "active":
            info.add_metric([f"{model.name}-{model.version}"], 1)
    yield info


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
