"""What stands in the way of streaming from a source, each with the SQL or the setting that removes it. Pure.

    cdc.inspection.inspect_source -> Source --source_findings--> Finding, ...

Every rule answers with one finding even when all is well, so that a report shows what was looked at. Whether a table's
replica identity fits its tenants is judged in `fanout.preflight`, since nothing here knows what a tenant is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

import msgspec

from cdc.ddl_trigger import TriggerState
from cdc.inspection import Publication, Source, Table
from cdc.slot import FAILOVER_FROM, Slot, SlotState

OPERATIONS = ("insert", "update", "delete", "truncate")

_WAL_LEVEL_FIX = {
    "rds": "Set `rds.logical_replication = 1` in the parameter group, and reboot.",
    "cloudsql": "Set the flag `cloudsql.logical_decoding = on`, which restarts the instance.",
    "azure": "Set the server parameter `wal_level = logical`, and restart.",
    "neon": "Enable logical replication in the project's settings.",
}


class Severity(enum.Enum):
    """ERROR: it will not work, or not rightly. WARNING: it works, with a risk that is named. OK: as it should be."""

    ERROR = "error"
    WARNING = "warning"
    OK = "ok"


class Finding(msgspec.Struct, frozen=True):
    """What one rule found. `fix`: SQL, a setting or a command; never empty for an error."""

    check: str
    severity: Severity
    message: str
    fix: str = ""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Severity.OK, message)


def warning(check: str, message: str, fix: str) -> Finding:
    """It works, with a risk."""
    return Finding(check, Severity.WARNING, message, fix)


def error(check: str, message: str, fix: str) -> Finding:
    """It does not work, or not rightly."""
    return Finding(check, Severity.ERROR, message, fix)


def identifier(*names: str) -> str:
    """SQL of a name, quoted always, so that what is printed can be pasted."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def source_findings(source: Source, tables: Iterable[Table]) -> list[Finding]:
    """Every rule on the server, the role, the publication and the slot. `tables`: those that are to be replicated."""
    tables = list(tables)
    return [
        _version(source),
        _unpooled(source),
        _encoding(source),
        _wal_level(source),
        _replication(source),
        _senders(source),
        _slots(source),
        _wal_kept(source),
        _sender_timeout(source),
        *_idle_slots(source),
        *_publication(source),
        *_rights(source, tables),
        _slot(source.slot),
        *_failover(source),
        *_provider(source),
        _trigger(source.trigger),
    ]


def _version(source: Source) -> Finding:
    if source.in_recovery:
        return error(
            "server",
            "This server is a standby: the relay writes logical messages, which only a primary takes",
            "Point `source.dsn` to the primary.",
        )
    if source.version_num < 150_000:
        return error("server", f"PostgreSQL {source.version} is too old", "Upgrade to PostgreSQL 15 or newer.")
    return ok("server", f"PostgreSQL {source.version}")


def _unpooled(source: Source) -> Finding:
    fix = "Point `source.dsn` to the server itself: a slot cannot be read, nor a session's lock held, through a pooler."
    if set(source.backend_pids) != {source.backend_pid}:
        return error("connection", "A connection pooler answers, not the server: queries meet changing backends", fix)
    if "-pooler." in source.host or ".pooler." in source.host:
        return error("connection", f"{source.host} is a connection pooler", fix)
    return ok("connection", "straight to the server")


def _encoding(source: Source) -> Finding:
    if source.encoding == "SQL_ASCII":
        return error(
            "encoding",
            "The database's encoding is SQL_ASCII: nothing says that its text is text, and replicas hold UTF-8",
            "Dump it, and restore it into a database made with `encoding 'UTF8' template template0`.",
        )
    return ok("encoding", source.encoding)


def _wal_level(source: Source) -> Finding:
    if source.wal_level != "logical":
        fix = "alter system set wal_level = 'logical'; -- then restart the server"
        return error("wal_level", f"wal_level is {source.wal_level}", _WAL_LEVEL_FIX.get(source.provider, fix))
    return ok("wal_level", "logical")


def _replication(source: Source) -> Finding:
    if source.system is not None:
        return ok("replication", f"{source.role} may stream")
    if source.may_replicate:
        return error("replication", source.replication_failure, source.replication_hint)
    role = identifier(source.role)
    fix = f"grant rds_replication to {role};" if source.provider == "rds" else f"alter role {role} replication;"
    return error("replication", f"{source.role} has not the right to stream: {source.replication_failure}", fix)


def _senders(source: Source) -> Finding:
    limit, used = source.max_wal_senders, source.wal_senders
    if used >= limit and source.slot.state is not SlotState.ACTIVE:
        return error(
            "max_wal_senders",
            f"No sender is free: {used} of {limit} in use",
            f"alter system set max_wal_senders = {limit + 10}; -- then restart the server",
        )
    return ok("max_wal_senders", f"{used} of {limit} in use")


def _slots(source: Source) -> Finding:
    limit, used = source.max_replication_slots, source.replication_slots
    if used >= limit and source.slot.state is SlotState.MISSING:
        return error(
            "max_replication_slots",
            f"No slot is free: {used} of {limit} in use",
            f"alter system set max_replication_slots = {limit + 10}; -- then restart the server; or drop one",
        )
    return ok("max_replication_slots", f"{used} of {limit} in use")


def _wal_kept(source: Source) -> Finding:
    kept = source.max_slot_wal_keep_mb
    if kept < 0:
        return warning(
            "max_slot_wal_keep_size",
            "unlimited: while the relay is away, its slot keeps WAL until the server's disk is full",
            "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf(); -- as much as the disk can spare",
        )
    return ok("max_slot_wal_keep_size", f"{kept} MB: a slot further behind loses its WAL and is copied afresh")


def _sender_timeout(source: Source) -> Finding:
    if source.wal_sender_timeout_ms == 0:
        return warning(
            "wal_sender_timeout",
            "0: a relay that vanished without a word holds its slot for ever",
            "alter system set wal_sender_timeout = '60s'; select pg_reload_conf();",
        )
    return ok("wal_sender_timeout", f"{source.wal_sender_timeout_ms / 1000:g} s")


def _idle_slots(source: Source) -> Iterator[Finding]:
    if source.idle_slot_timeout_s:
        yield warning(
            "idle_replication_slot_timeout",
            f"{source.idle_slot_timeout_s} s: a relay that is away longer loses its slot, and copies afresh",
            "alter system set idle_replication_slot_timeout = 0; select pg_reload_conf();",
        )


def _publication(source: Source) -> Iterator[Finding]:
    check = "publication"
    found = source.publication
    if found is None:
        yield error(check, "The publication does not exist", "headrace setup")
        return
    name = identifier(found.name)
    published = [table for table in source.tables if table.published]
    missing = [operation for operation in OPERATIONS if operation not in found.operations]
    if missing:
        yield error(
            check,
            f"It does not send {', '.join(missing)}",
            f"alter publication {name} set (publish = '{', '.join(OPERATIONS)}');",
        )
    if found.all_tables:
        yield warning(
            check,
            "FOR ALL TABLES: a new table without a replica identity refuses UPDATE and DELETE from its first day, "
            "and one without a tenancy rule stops the relay",
            f"drop publication {name}; -- with the relay stopped; then `headrace setup`",
        )
    if not published:
        yield error(check, "It has no tables", "headrace setup")
    if not found.via_root:
        yield from _leaves(found, published)
    if not missing and published:
        yield ok(check, f"{found.name}: {_count(len(published), 'table')}")


def _leaves(found: Publication, published: list[Table]) -> Iterator[Finding]:
    fix = f"alter publication {identifier(found.name)} set (publish_via_partition_root = true);"
    leaves = [table.name for table in published if table.is_partition]
    if leaves:
        yield error("publication", f"It sends partitions as tables of their own: {_some(leaves)}", fix)
    else:
        yield warning("publication", "A table that is partitioned later would come as its partitions", fix)


def _rights(source: Source, tables: list[Table]) -> Iterator[Finding]:
    role = identifier(source.role)
    bad = False
    for schema in sorted({table.schema for table in tables if not table.schema_usage}):
        bad = True
        yield error(
            "rights", f"{source.role} may not use schema {schema}", f"grant usage on schema {identifier(schema)} to {role};"
        )
    for table in tables:
        if not table.select:
            bad = True
            fix = f"grant select on {identifier(table.schema, table.table)} to {role};"
            yield error("rights", f"{source.role} may not read {table.name}", fix)
        if table.row_security:
            bad = True
            fix = f"alter role {role} bypassrls;"
            yield error("rights", f"Row security hides rows of {table.name} from {source.role}'s first copy", fix)
    if not bad:
        yield ok("rights", f"{source.role} may read {_count(len(tables), 'table')}")


def _slot(slot: Slot) -> Finding:
    match slot.state:
        case SlotState.MISSING:
            return ok("slot", f"{slot.name} does not exist yet: the relay makes it at its first start")
        case SlotState.INVALIDATED:
            return error("slot", f"{slot.name} has lost its WAL", "headrace recover")
        case SlotState.FOREIGN:
            return error(
                "slot",
                f"{slot.name} is physical, of another plugin or of another database",
                "Choose another name: `slot` under `[source]`.",
            )
    state = f"read by pid {slot.active_pid}" if slot.state is SlotState.ACTIVE else "not being read"
    kept = f"{slot.name} is {state}, {(slot.retained_bytes or 0) / 2**20:,.1f} MB of WAL kept"
    if slot.wal_status == "unreserved":
        return warning("slot", f"{kept}: the server is about to remove it", "Start the relay now: `headrace relay`.")
    return ok("slot", kept)


def _failover(source: Source) -> Iterator[Finding]:
    """Whether the slot would be on the standby that takes over."""
    check, slot = "failover", source.slot
    if not source.standbys and not source.physical_slots:
        yield ok(check, "no standby streams from this server")
        return
    if source.version_num < FAILOVER_FROM:
        yield ok(check, "before PostgreSQL 17 a standby has no slot: after a failover, `headrace recover`")
        return
    if slot.failover is False:
        yield warning(
            check,
            f"{slot.name} was made without `failover`: the standby that takes over does not have it",
            "With the relay stopped, on a replication connection (psql 'dbname=... replication=database'): "
            f"ALTER_REPLICATION_SLOT {identifier(slot.name)} (FAILOVER true);",
        )
    if not source.synchronized_standby_slots:
        names = ", ".join(source.physical_slots) or "STANDBY_SLOT"
        yield warning(
            check,
            "synchronized_standby_slots is empty: replicas may get what the standby that takes over never had",
            "On each standby: alter system set sync_replication_slots = on; with primary_slot_name, hot_standby_feedback "
            f"and a dbname in primary_conninfo. Here: alter system set synchronized_standby_slots = '{names}'; "
            "select pg_reload_conf();",
        )
    elif slot.failover is not False:
        yield ok(check, f"standbys have every change first: {source.synchronized_standby_slots}")


def _provider(source: Source) -> Iterator[Finding]:
    if source.provider == "neon":
        yield warning(
            "provider",
            "Neon removes a slot that is inactive for about 40 hours, and all slots of a branch that is restored; while the "
            "relay reads, the compute does not scale to zero",
            "Keep the relay running, alert on HeadraceRelayDown. After a removal or a restore: `headrace recover`.",
        )


def _trigger(state: TriggerState) -> Finding:
    check, fix = "ddl trigger", "headrace setup --ddl-trigger"
    match state:
        case TriggerState.MISSING:
            return ok(check, "not there: a schema change that rows do not show is noticed late, and read again")
        case TriggerState.OTHER_VERSION:
            return warning(check, "It is of another version of Headrace", fix)
        case TriggerState.DISABLED:
            return warning(check, "A part of it is gone, or does not fire in every session", fix)
        case TriggerState.NOT_NOTED:
            return warning(check, "It is there, but does not serve this publication", fix)
    return ok(check, "schema changes are told where they happen")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
