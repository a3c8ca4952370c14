"""Every metric that Headrace serves: the only place where names are made, so that code, page, rules and dashboards agree.

Names follow https://prometheus.io/docs/practices/naming/: the stage, what it is, the unit; `_total` of what only grows. A
position in the WAL is a number of bytes since the server was made, so that differences are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Kind = Literal["gauge", "counter", "histogram"]

PHASES: Final = {
    "relay": ("starting", "copying", "streaming", "stopping", "retrying"),
    "applier": ("starting", "applying", "stopped", "retrying"),
    "audit": ("starting", "auditing", "retrying"),
}
"""Of each stage, what it says of itself; `retrying`: it waits out an error."""


class Family(NamedTuple):
    """`labels`: a few values each, known in advance or bounded by the configuration."""

    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


_SLOT: Final = ("slot",)
_PARTITION: Final = ("partition",)

FAMILIES: Final[Mapping[str, Family]] = {
    # every process
    "headrace_build_info": Family("gauge", "1, with the version and the stage of the process.", ("version", "stage")),
    # relay, and edge where it has a connection string: the source
    "headrace_source_up": Family("gauge", "1 when Postgres answered the last look at the slot.", _SLOT),
    "headrace_source_wal_lsn_bytes": Family("gauge", "The server's position in its WAL.", _SLOT),
    "headrace_source_confirmed_flush_lsn_bytes": Family("gauge", "Up to where the relay has confirmed.", _SLOT),
    "headrace_source_restart_lsn_bytes": Family("gauge", "From where on the server keeps WAL for the slot.", _SLOT),
    "headrace_source_confirmed_flush_lag_bytes": Family("gauge", "WAL that is written and not confirmed.", _SLOT),
    "headrace_source_retained_wal_bytes": Family("gauge", "WAL that the server keeps for the slot.", _SLOT),
    "headrace_source_safe_wal_size_bytes": Family(
        "gauge",
        "WAL that may still be written before the server gives the slot up. Absent without `max_slot_wal_keep_size`.",
        _SLOT,
    ),
    "headrace_source_wal_budget_seconds": Family(
        "gauge", "How long that lasts at the pace of the last minutes. Absent while it does not shrink.", _SLOT
    ),
    "headrace_source_slot_state": Family(
        "gauge", "1 for the state that the slot is in: missing, inactive, active, invalidated, foreign.", ("slot", "state")
    ),
    "headrace_source_wal_status": Family(
        "gauge", "1 for what Postgres says: reserved, extended, unreserved, lost.", ("slot", "wal_status")
    ),
    "headrace_source_slot_failover": Family(
        "gauge", "1 when standbys may have the slot too. Absent before PostgreSQL 17.", _SLOT
    ),
    # relay
    "headrace_relay_phase": Family("gauge", "1 for what the relay does.", ("phase",)),
    "headrace_relay_generation": Family("gauge", "Grows with each new slot."),
    "headrace_relay_received_lsn_bytes": Family("gauge", "Up to where the server has sent."),
    "headrace_relay_appended_lsn_bytes": Family("gauge", "Up to where all is in the log's hands."),
    "headrace_relay_durable_lsn_bytes": Family("gauge", "Up to where all is durable in the log."),
    "headrace_relay_commit_timestamp_seconds": Family("gauge", "When the last transaction that came had committed."),
    "headrace_relay_progress_timestamp_seconds": Family("gauge", "When the relay last told the log how far it is."),
    "headrace_relay_received_bytes_total": Family("counter", "Bytes of changes from the server."),
    "headrace_relay_transactions_total": Family("counter", "Transactions from the server."),
    "headrace_relay_rows_total": Family("counter", "Changed rows that were given to a tenant, or to all."),
    "headrace_relay_skipped_rows_total": Family("counter", "Changed rows that a rule leaves out."),
    "headrace_relay_records_total": Family("counter", "Records appended to the log."),
    "headrace_relay_copied_rows": Family("gauge", "Rows of the first copy so far."),
    "headrace_relay_copy_rows_estimate": Family("gauge", "How many the first copy has, by Postgres' estimate."),
    "headrace_relay_spilled_bytes": Family("gauge", "On disk, of transactions that have not committed."),
    "headrace_relay_refills_waiting": Family("gauge", "Tables and tenants whose rows are to be read again."),
    "headrace_relay_refill_rows": Family("gauge", "Rows read again of the one at hand."),
    "headrace_relay_refill_held_up": Family("gauge", "1 while a transaction in Postgres holds that up."),
    "headrace_relay_heartbeats_total": Family("counter", "Heartbeats written: nothing else had moved the slot."),
    "headrace_relay_ended_sessions_total": Family("counter", "Sessions of dead relays of ours that were ended."),
    "headrace_relay_errors_total": Family("counter", "Errors by which the relay started over or ended.", ("error",)),
    # relay: the log
    "headrace_log_up": Family("gauge", "1 when the log answered."),
    "headrace_log_first_offset": Family("gauge", "The first offset that can be read.", _PARTITION),
    "headrace_log_end_offset": Family(
        "gauge", "The offset that the next record gets. In the embedded log one count is all partitions'.", _PARTITION
    ),
    "headrace_log_size_bytes": Family("gauge", "On disk. Of the embedded log only."),
    # applier
    "headrace_applier_phase": Family("gauge", "1 for what the applier does.", ("phase",)),
    "headrace_applier_partitions": Family("gauge", "Partitions that it has."),
    "headrace_applier_waiting_partitions": Family("gauge", "Given to it, and not let go of by another yet."),
    "headrace_applier_applied_offset": Family("gauge", "Everything below it is applied.", _PARTITION),
    "headrace_applier_applied_lsn_bytes": Family("gauge", "Up to where the source is applied.", _PARTITION),
    "headrace_applier_applied_timestamp_seconds": Family("gauge", "When the relay was there.", _PARTITION),
    "headrace_applier_lag_seconds": Family(
        "gauge",
        "Since the relay was there, by this machine's clock. Of an idle source it grows to `source.heartbeat_s`.",
        _PARTITION,
    ),
    "headrace_applier_stale_partitions": Family("gauge", "Whose replicas may lack what was written while a slot was lost."),
    "headrace_applier_unready_partitions": Family("gauge", "Whose first copy is not whole."),
    "headrace_applier_records_total": Family("counter", "Records read from the log."),
    "headrace_applier_rows_total": Family("counter", "Rows applied."),
    "headrace_applier_passed_over_records_total": Family("counter", "Records of quarantined tenants."),
    "headrace_applier_visible_seconds": Family(
        "histogram",
        "From commit in Postgres to commit in the replica, of the last transaction of each group of a tenant's "
        "transactions that one commit brings.",
    ),
    "headrace_applier_open_replicas": Family("gauge", "Kept open for writing."),
    "headrace_applier_quarantined_tenants": Family("gauge", "Tenants that stopped."),
    "headrace_applier_held_tenants": Family("gauge", "Tenants that wait for values of a row; 20 at most are told."),
    "headrace_applier_oldest_held_seconds": Family("gauge", "How long the first of these has waited; 0: there is none."),
    "headrace_applier_behind_partitions": Family("gauge", "Not every replica has the tables' present shape."),
    "headrace_applier_pending_replicas": Family("gauge", "In the object store, and not in their place yet."),
    "headrace_applier_dirty_tenants": Family("gauge", "Changed since their last snapshot."),
    "headrace_applier_snapshot_timestamp_seconds": Family(
        "gauge", "When the oldest of the partitions' newest manifests was published. Absent without snapshots."
    ),
    "headrace_applier_history_waits_timestamp_seconds": Family(
        "gauge", "When the first record came that is not in the object store's history yet. Absent when there is none."
    ),
    "headrace_applier_stored_bytes_total": Family("counter", "Written to the object store: snapshots and history."),
    "headrace_applier_errors_total": Family("counter", "Errors by which the applier started over or ended.", ("error",)),
    # edge
    "headrace_edge_requests_total": Family("counter", "Answered requests, by class of status.", ("status",)),
    "headrace_edge_request_duration_seconds": Family("histogram", "From a request's head to its answer."),
    "headrace_edge_throttled_requests_total": Family("counter", "Answered 429: too many of one tenant wait."),
    "headrace_edge_limit_hits_total": Family("counter", "Requests that met a limit of `[edge]`.", ("limit",)),
    "headrace_edge_open_replicas": Family("gauge", "Kept open for reading, by all workers."),
    "headrace_edge_workers": Family("gauge", "Worker processes that live."),
    # audit
    "headrace_audit_phase": Family("gauge", "1 for what the audit does.", ("phase",)),
    "headrace_audit_rounds_total": Family("counter", "Rounds done."),
    "headrace_audit_compared_replicas_total": Family("counter", "Replicas compared with Postgres."),
    "headrace_audit_compared_rows_total": Family("counter", "Rows compared."),
    "headrace_audit_not_compared_replicas": Family("gauge", "Of the last round: they could not be."),
    "headrace_audit_differing_replicas": Family("gauge", "That differed when they were last compared."),
    "headrace_audit_round_timestamp_seconds": Family("gauge", "When the last round ended. Absent before the first."),
    "headrace_audit_errors_total": Family("counter", "Errors by which the audit started over or ended.", ("error",)),
    # run
    "headrace_run_child_up": Family("gauge", "1 while the process lives.", ("child",)),
    "headrace_run_child_starts_total": Family("counter", "How often it was started.", ("child",)),
}

PROCESS: Final[Mapping[str, Family]] = {
    "process_cpu_seconds_total": Family("counter", "Time on a processor."),
    "process_resident_memory_bytes": Family("gauge", "Memory in use."),
    "process_virtual_memory_bytes": Family("gauge", "Memory addressed."),
    "process_start_time_seconds": Family("gauge", "When it was started."),
    "process_open_fds": Family("gauge", "Open files."),
    "process_max_fds": Family("gauge", "How many it may open."),
}
"""The client library's own, which every process has; of `headrace edge`, of the one that starts the workers."""
