"""Merged counters as Prometheus metrics, by a custom collector that reads plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from proxy import declared_metrics, metrics
from proxy.admin.source import PlannerStatus, Status


class StatusCollector(Collector):
    """Yields every declared metric of one ``Status``."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        counted = (
            *declared_metrics.WORKER_METRICS, *declared_metrics.DATABASE_METRICS, *declared_metrics.PLANNER_COUNTERS,
        )  # fmt: skip
        for declared in counted:
            family = _family(declared)
            if declared.label:
                found = {**dict.fromkeys(declared.values, 0.0), **_labelled(self._status, declared.attribute)}
                for label, value in sorted(found.items()):
                    family.add_metric([label], value)
            else:
                family.add_metric([], self._status.totals.get(declared.attribute, 0))
            yield family
        for histogram in (*declared_metrics.WORKER_HISTOGRAMS, *declared_metrics.PLANNER_HISTOGRAMS):
            yield self._histogram(histogram)
        yield from self._own()
        yield from _planner(self._status.planner or PlannerStatus())

    def _histogram(self, declared: declared_metrics.Histogram) -> HistogramMetricFamily:
        """From one count for each bucket, under ``attribute{bound}``, and ``attribute_sum``."""
        totals, attribute = self._status.totals, declared.attribute
        labels = [*(str(bound) for bound in declared.bounds), "+Inf"]
        counts = accumulate(totals.get(f"{attribute}{{{label}}}", 0) for label in labels)
        return HistogramMetricFamily(
            declared_metrics.PREFIX + declared.name,
            declared.help,
            buckets=list(zip(labels, counts, strict=True)),
            sum_value=totals.get(f"{attribute}_sum", 0),
            unit=_unit(declared.name),
        )

    def _own(self) -> Iterator[Metric]:
        for declared in declared_metrics.SUPERVISOR_METRICS:
            family = _family(declared)
            if declared.attribute == "memory":
                planner = self._status.planner
                extra = {"planner": planner.memory} if planner is not None and planner.memory else {}
                for process, size in sorted({**self._status.memory, **extra}.items()):
                    family.add_metric([process], size)
            else:
                family.add_metric([], float(getattr(self._status, declared.attribute)))
            yield family


def _planner(status: PlannerStatus) -> Iterator[Metric]:
    for declared in declared_metrics.PLANNER_GAUGES:
        family = _family(declared)
        family.add_metric([], float(getattr(status, declared.attribute)))
        yield family
    info = _family(declared_metrics.MODEL_INFO)
    for model in status.models:
        if model.state == "active":
            info.add_metric([f"{model.name}-{model.version}"], 1)
    yield info


def _family(declared: declared_metrics.Metric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    labels = [declared.label] if declared.label else []
    return kind(declared_metrics.PREFIX + declared.name, declared.help, labels=labels, unit=_unit(declared.name))


def _unit(name: str) -> str:
    """OpenMetrics' unit, which a name then has to end with; others are in the documentation only."""
    return next((unit for unit in ("seconds", "bytes") if name.endswith(f"_{unit}")), "")


def _labelled(status: Status, attribute: str) -> dict[str, float]:
    return dict(metrics.labelled(status.totals, attribute))


def render(status: Status, accept: str) -> tuple[bytes, str]:
    """The exposition in the form that the ``Accept`` header asks for, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
