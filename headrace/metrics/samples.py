"""What the processes know -> values of metrics. Reads, at the moment it is asked; counts nothing.

What is read belongs to another thread, which goes on: each number is of its own moment, as in any scrape.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from appliers.telling import VISIBLE_BOUNDS_S, WorkerStatus
from cdc.lsn import parse_lsn
from cdc.slot import SlotState
from cdc.slot_watch import Look, SlotWatch
from edge.counts import BOUNDS_S, LIMITS, Counted
from fanout.log.interface import Extent
from fanout.relay import RelayStatus
from headrace.metrics.families import FAMILIES, PHASES
from headrace.status_file import AuditStatus

_WAL_STATUS: Final = ("reserved", "extended", "unreserved", "lost")


class Samples:
    """Values gathered under the names of `families`."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def add(self, name: str, value: float | None, *labels: object) -> None:
        """One value; None is left out. Raises KeyError for a name that is not in `families`."""
        family = FAMILIES[name]
        if value is None:
            return
        metric = self._metrics.get(name)
        if metric is None:
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = self._metrics[name] = make(name, family.meaning, labels=family.labels)
        assert isinstance(metric, CounterMetricFamily | GaugeMetricFamily)
        metric.add_metric([str(label) for label in labels], value)

    def one_of(self, name: str, states: Iterable[str], state: str, *labels: object) -> None:
        """1 for the state, 0 for the others; the state is the last label."""
        for other in states:
            self.add(name, other == state, *labels, other)

    def histogram(self, name: str, bounds_s: Sequence[float], counts: Sequence[int], sum_s: float) -> None:
        """`counts`: of each bucket alone, with one more for what is above all bounds."""
        buckets, below = [], 0
        for bound, count in zip([*map(str, bounds_s), "+Inf"], counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        metric = HistogramMetricFamily(name, FAMILIES[name].meaning)
        metric.add_metric([], buckets, sum_s)
        self._metrics[name] = metric

    def add_errors(self, stage: str, counts: Mapping[str, int]) -> None:
        """Of a stage, by the error's name."""
        for error, count in dict(counts).items():
            self.add(f"headrace_{stage}_errors_total", count, error)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())


def fill_source(samples: Samples, name: str, look: Look) -> None:
    """The slot `name`, as it was seen last."""
    slot = look.slot
    samples.add("headrace_source_up", slot is not None, name)
    if slot is None:
        return
    samples.one_of("headrace_source_slot_state", [state.value for state in SlotState], slot.state.value, name)
    if slot.state in (SlotState.MISSING, SlotState.FOREIGN):
        return
    samples.one_of("headrace_source_wal_status", _WAL_STATUS, slot.wal_status, name)
    samples.add("headrace_source_wal_lsn_bytes", slot.wal_lsn, name)
    samples.add("headrace_source_confirmed_flush_lsn_bytes", slot.confirmed_flush_lsn or None, name)
    samples.add("headrace_source_restart_lsn_bytes", slot.restart_lsn or None, name)
    samples.add("headrace_source_confirmed_flush_lag_bytes", slot.lag_bytes, name)
    samples.add("headrace_source_retained_wal_bytes", slot.retained_bytes, name)
    samples.add("headrace_source_safe_wal_size_bytes", slot.safe_wal_size, name)
    samples.add("headrace_source_wal_budget_seconds", look.eta_s, name)
    samples.add("headrace_source_slot_failover", slot.failover, name)


def fill_relay(samples: Samples, status: RelayStatus, phase: str, watch: SlotWatch, slot: str) -> None:
    """`phase`: of the process, which may be waiting out an error."""
    fill_source(samples, slot, watch.latest)
    samples.add("headrace_relay_heartbeats_total", watch.heartbeats)
    samples.add("headrace_relay_ended_sessions_total", watch.ended_sessions)
    samples.one_of("headrace_relay_phase", PHASES["relay"], phase)
    samples.add("headrace_relay_generation", status.generation)
    for name in ("received", "appended", "durable"):
        lsn = parse_lsn(getattr(status, f"{name}_lsn"))
        samples.add(f"headrace_relay_{name}_lsn_bytes", lsn or None)
    samples.add("headrace_relay_commit_timestamp_seconds", _seconds(status.commit_time_us))
    samples.add("headrace_relay_progress_timestamp_seconds", _seconds(status.progress_time_us))
    samples.add("headrace_relay_received_bytes_total", status.received_bytes)
    samples.add("headrace_relay_transactions_total", status.transactions)
    samples.add("headrace_relay_rows_total", status.rows)
    samples.add("headrace_relay_skipped_rows_total", status.skipped_rows)
    samples.add("headrace_relay_records_total", status.records)
    samples.add("headrace_relay_copied_rows", status.copied_rows)
    samples.add("headrace_relay_copy_rows_estimate", status.copy_rows_estimate)
    samples.add("headrace_relay_spilled_bytes", status.spilled_bytes)
    refill = status.refill
    samples.add("headrace_relay_refills_waiting", refill.waiting + bool(refill.table or refill.tenant))
    samples.add("headrace_relay_refill_rows", refill.rows)
    samples.add("headrace_relay_refill_held_up", bool(refill.held_up_by))


def fill_applier(samples: Samples, status: WorkerStatus, phase: str) -> None:
    """As `fill_relay`."""
    samples.one_of("headrace_applier_phase", PHASES["applier"], phase)
    samples.add("headrace_applier_partitions", status.partitions)
    samples.add("headrace_applier_waiting_partitions", status.waiting)
    now = time.time()
    for place in list(status.places):
        samples.add("headrace_applier_applied_offset", max(0, place.offset), place.partition)
        samples.add("headrace_applier_applied_lsn_bytes", place.lsn or None, place.partition)
        reached = _seconds(place.time_us)
        samples.add("headrace_applier_applied_timestamp_seconds", reached, place.partition)
        samples.add("headrace_applier_lag_seconds", max(0.0, now - reached) if reached else None, place.partition)
    samples.add("headrace_applier_stale_partitions", sum(place.stale for place in status.places))
    samples.add("headrace_applier_unready_partitions", sum(not place.ready for place in status.places))
    samples.add("headrace_applier_records_total", status.records)
    samples.add("headrace_applier_rows_total", status.rows)
    samples.add("headrace_applier_passed_over_records_total", status.passed_over)
    samples.histogram(
        "headrace_applier_visible_seconds", VISIBLE_BOUNDS_S, status.visible_counts, status.visible_sum_ms / 1000
    )
    samples.add("headrace_applier_open_replicas", status.warm)
    samples.add("headrace_applier_quarantined_tenants", status.quarantined)
    held = list(status.held)
    samples.add("headrace_applier_held_tenants", len(held))
    samples.add("headrace_applier_oldest_held_seconds", max((now - one.since_ms / 1000 for one in held), default=0.0))
    samples.add("headrace_applier_behind_partitions", status.behind)
    samples.add("headrace_applier_pending_replicas", status.pending)
    samples.add("headrace_applier_dirty_tenants", status.dirty)
    samples.add("headrace_applier_snapshot_timestamp_seconds", _since(status.published_ms))
    samples.add("headrace_applier_history_waits_timestamp_seconds", _since(status.history_waits_ms))
    samples.add("headrace_applier_stored_bytes_total", status.stored_bytes)


def fill_audit(samples: Samples, status: AuditStatus, phase: str) -> None:
    """As `fill_relay`."""
    samples.one_of("headrace_audit_phase", PHASES["audit"], phase)
    samples.add("headrace_audit_rounds_total", status.rounds)
    samples.add("headrace_audit_compared_replicas_total", status.compared)
    samples.add("headrace_audit_compared_rows_total", status.rows)
    samples.add("headrace_audit_not_compared_replicas", status.not_compared)
    samples.add("headrace_audit_differing_replicas", status.differ)
    samples.add("headrace_audit_round_timestamp_seconds", _since(status.last_ms or None))


def fill_edge(samples: Samples, counted: Counted) -> None:
    """Of all workers, also those that have ended."""
    for status, count in counted.statuses.items():
        samples.add("headrace_edge_requests_total", count, status)
    samples.histogram("headrace_edge_request_duration_seconds", BOUNDS_S, counted.durations, counted.sum_s)
    for limit in LIMITS:
        samples.add("headrace_edge_limit_hits_total", counted.limits[limit], limit)
    samples.add("headrace_edge_throttled_requests_total", counted.throttled)
    samples.add("headrace_edge_open_replicas", counted.open_replicas)
    samples.add("headrace_edge_workers", counted.workers)


def fill_log(samples: Samples, extents: Mapping[int, Extent] | None, size_bytes: int | None) -> None:
    """The log's partitions; None: it did not answer."""
    samples.add("headrace_log_up", extents is not None)
    for partition, extent in sorted((extents or {}).items()):
        samples.add("headrace_log_first_offset", max(0, extent.first), partition)
        samples.add("headrace_log_end_offset", extent.end, partition)
    samples.add("headrace_log_size_bytes", size_bytes)


def fill_run(samples: Samples, lives: Mapping[str, tuple[bool, int]]) -> None:
    """`lives`: of each child, whether it lives and how often it was started."""
    for child, (up, starts) in dict(lives).items():
        samples.add("headrace_run_child_up", up, child)
        samples.add("headrace_run_child_starts_total", starts, child)


def _seconds(time_us: int) -> float | None:
    return time_us / 1_000_000 if time_us else None


def _since(time_ms: int | None) -> float | None:
    return None if time_ms is None else time_ms / 1000
