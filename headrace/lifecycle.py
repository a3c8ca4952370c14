"""`headrace tenant create`, `delete` and `export`: a replica before its tenant's first row, after the last, and elsewhere.

    create   the replica is there, whole and empty, before the tenant's first row: as a resync of nothing
    delete   nothing of a tenant that has left stays in files and snapshots; refused while Postgres has rows of it
    export   the tenant's tables as of one commit, without what Headrace keeps beside them: an SQLite file, or SQL

A tenant appears by itself with its first row, so `create` is only for readers that must not meet TenantUnknown. What the
log holds of a tenant that has left goes with the log's retention.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, Literal

import apsw
import apsw.shell
import msgspec

from appliers.errors import StorageUnavailable
from appliers.orders import Happened, open_orders, ring
from appliers.reader import Directory, ReplicaReader
from appliers.table import quote
from cdc.as_of import source_as_of
from cdc.errors import CopyFailed
from cdc.lsn import format_lsn
from fanout.tenancy import Tenancy
from fanout.tenant_rows import rows_of
from headrace import output
from headrace.config import Config
from headrace.errors import CommandError
from headrace.quarantine import who
from headrace.refills import pause

_OURS: Final = r"\_headrace\_%"


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """`proof`: the line of the audit trail; None: it is not done yet. `log_hours`: until the log has nothing of it."""

    tenant: str
    proof: Happened | None
    log_hours: float


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """As of `lsn`."""

    tenant: str
    path: str
    lsn: str
    bytes: int


def delete(config: Config, tenant: str, *, wait_s: float | None) -> Deleted:
    """Ask for the erasure, and with `wait_s` wait so long for it. Raises CommandError while Postgres has rows of the tenant,
    TenantUnknown, SourceError, ReplicasMissing, StorageUnavailable, PointNotReached."""
    root = Path(config.replicas.path)
    with Directory(root) as directory:
        directory.open(tenant).connection.close()
        partition = directory.partition_of(tenant)
    _require_gone(config, tenant)
    asked_ms = time.time_ns() // 1_000_000
    with open_orders(root) as orders:
        orders.ask_to_erase(tenant, partition, who())
    ring(root)
    proof = None if wait_s is None else _wait(root, tenant, asked_ms, time.monotonic() + wait_s)
    return Deleted(tenant=tenant, proof=proof, log_hours=config.log.retention_hours)


def _require_gone(config: Config, tenant: str) -> None:
    tenancy = Tenancy(config.tenancy, config.placement.region)
    with source_as_of(config.dsn(), config.source.publication) as source:
        chosen = rows_of(tenancy, source.tables, tenant)
        try:
            with source.held([one.table for one in chosen]):
                left = [one.table.relation.name for one in chosen if source.has_rows(one, tenant)]
        except CopyFailed as error:
            raise CommandError(error.message, hint="Try again: DDL ran at this moment.") from error
    if left:
        raise CommandError(
            f"Postgres has rows of the tenant: {', '.join(left)}",
            hint="Delete them there first; they leave the replica by the stream. Then this erases what is left of them.",
            tenant=tenant,
        )


def _wait(root: Path, tenant: str, since_ms: int, until: float) -> Happened:
    with open_orders(root) as orders:
        while True:
            for happened in reversed(orders.trail(tenant)):
                if happened.at_ms >= since_ms and happened.event == "erased":
                    return happened
                if happened.at_ms >= since_ms and happened.event == "refused":
                    hint = "`headrace tenant history` has it."
                    raise CommandError(f"Not erased: {happened.detail}", hint=hint, tenant=tenant)
            pause(until, "The applier has not erased it yet")


def export(config: Config, tenant: str, path: Path, form: Literal["sqlite", "sql"]) -> Exported:
    """Raises TenantUnknown, ReplicaCorrupt, CommandError when the file is there, StorageUnavailable."""
    if path.exists():
        raise CommandError("The file is there already", hint="Name another one, or move it away.", path=str(path))
    part = path.with_name(f".{path.name}.part")
    try:
        with Directory(Path(config.replicas.path)) as directory, directory.open(tenant) as replica, replica.snapshot():
            lsn = format_lsn(replica.position().position.commit_lsn)
            copy = _copied(replica, part if form == "sqlite" else Path(":memory:"))
        try:
            if form == "sql":
                with part.open("w", encoding="utf-8") as file:
                    apsw.shell.Shell(stdout=file, db=copy).process_command(".dump")  # type: ignore[no-untyped-call]
        finally:
            copy.close()
        part.replace(path)
    except (OSError, apsw.FullError, apsw.IOError, apsw.CantOpenError) as error:
        raise StorageUnavailable(f"The file cannot be written: {error}", path=str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    return Exported(tenant=tenant, path=str(path), lsn=lsn, bytes=path.stat().st_size)


def _copied(replica: ReplicaReader, path: Path) -> apsw.Connection:
    """The source's tables alone, with their indexes."""
    copy = apsw.Connection(str(path))
    with copy.backup("main", replica.connection, "main") as backup:
        backup.step(-1)
    ours = "select name from sqlite_schema where type = 'table' and name like ? escape '\\'"
    for (name,) in copy.execute(ours, (_OURS,)).fetchall():
        copy.execute(f"drop table {quote(str(name))}")
    copy.pragma("application_id", 0)
    copy.pragma("user_version", 0)
    copy.pragma("journal_mode", "delete")
    copy.execute("vacuum")
    return copy


def show_deleted(done: Deleted) -> None:
    """What proves it, and what is left."""
    if done.proof is None:
        output.out.print(f"Tenant {done.tenant}: to be erased; `headrace tenant history {done.tenant}` will prove it")
    else:
        output.out.print(f"Tenant {done.tenant}: erased, {done.proof.detail}")
    output.out.print(f"The log holds what it has of it for {done.log_hours:g} hours (log.retention_hours)")
