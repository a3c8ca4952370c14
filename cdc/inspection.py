"""The state of the source as `cdc.preflight` judges it: settings, rights, publication, slot, tables. Reads, judges nothing.

`inspect_source` asks through one ordinary and one replication connection, both opened as the relay opens them, so that
what stands in the relay's way stands in the way here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict

from cdc.connection import connect, connect_replication, translated
from cdc.ddl_trigger import TriggerState, inspect_trigger
from cdc.errors import SourceError
from cdc.relation import ReplicaIdentity
from cdc.row_filters import RowFilter, read_filters
from cdc.slot import Slot, SystemIdentity, identify_system, inspect_slot


class UniqueKey(msgspec.Struct, frozen=True):
    """A unique index that could be a replica identity: immediate, whole, over plain columns that are NOT NULL."""

    index: str
    columns: tuple[str, ...]
    primary: bool = False
    chosen: bool = False
    """REPLICA IDENTITY USING INDEX names it."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """An ordinary or partitioned table. `partitions`: the leaves below a partitioned one, whose rows are its rows."""

    schema: str
    table: str
    identity: ReplicaIdentity
    columns: tuple[str, ...]
    types: tuple[str, ...] = ()
    """Of the columns, as Postgres names them."""
    not_null: tuple[str, ...] = ()
    keys: tuple[UniqueKey, ...] = ()
    published: bool = False
    published_columns: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()
    """Generated columns, stored or virtual."""
    partitioned: bool = False
    is_partition: bool = False
    of_extension: bool = False
    schema_usage: bool = True
    select: bool = True
    row_security: bool = False
    """Policies hide rows from this role."""
    partitions: tuple[Table, ...] = ()

    @property
    def name(self) -> str:
        """`schema.table`, for people; not quoted."""
        return f"{self.schema}.{self.table}"

    @property
    def identity_columns(self) -> tuple[str, ...]:
        """The columns that an old row carries. Empty: Postgres refuses UPDATE and DELETE once the table is published."""
        match self.identity:
            case ReplicaIdentity.FULL:
                return self.columns
            case ReplicaIdentity.DEFAULT:
                return next((key.columns for key in self.keys if key.primary), ())
            case ReplicaIdentity.INDEX:
                return next((key.columns for key in self.keys if key.chosen), ())
            case ReplicaIdentity.NOTHING:
                return ()


class Publication(msgspec.Struct, frozen=True):
    """A row of pg_publication. `operations`: of insert, update, delete, truncate, those it sends."""

    name: str
    all_tables: bool
    via_root: bool
    operations: tuple[str, ...]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A server and database, as seen by one role."""

    host: str
    backend_pid: int
    """The backend that the connection was told at its start."""
    backend_pids: tuple[int, ...]
    """The backends that answered one query each."""
    version: str
    version_num: int
    in_recovery: bool
    encoding: str
    role: str
    superuser: bool
    may_replicate: bool
    provider: str
    """`rds`, `cloudsql`, `azure`, `neon`, or empty."""
    wal_level: str
    max_wal_senders: int
    wal_senders: int
    max_replication_slots: int
    replication_slots: int
    wal_sender_timeout_ms: int
    max_slot_wal_keep_mb: int
    """-1: without limit."""
    idle_slot_timeout_s: int
    """0: never."""
    system: SystemIdentity | None
    """None when the server takes no replication connection of this role."""
    replication_failure: str
    replication_hint: str
    publication: Publication | None
    slot: Slot
    tables: tuple[Table, ...]
    """Every table but the system's, whether published or not."""
    trigger: TriggerState = TriggerState.MISSING
    filters: Mapping[tuple[str, str], RowFilter] = {}
    """(schema, table) -> the row filter that the publication has."""
    standbys: int = 0
    """That stream from this server."""
    physical_slots: tuple[str, ...] = ()
    synchronized_standby_slots: str = ""
    """The standbys that must have a change before we may (PostgreSQL 17 on)."""


_SERVER = """
select current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(),
       current_setting('server_encoding'), current_user::text, r.rolsuper,
       r.rolreplication or exists (
         select from pg_roles m where m.rolname in ('rds_replication', 'rds_superuser')
         and pg_has_role(current_user, m.oid, 'member')),
       coalesce((select case m.rolname when 'rds_superuser' then 'rds' when 'cloudsqlsuperuser' then 'cloudsql'
                        when 'azure_pg_admin' then 'azure' when 'neon_superuser' then 'neon' end
                 from pg_roles m
                 where m.rolname in ('rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin', 'neon_superuser')
                 limit 1), ''),
       (select count(*) from pg_stat_replication), (select count(*) from pg_replication_slots)
from pg_roles r where r.rolname = current_user
"""

_SETTINGS = """
select name, setting from pg_settings
where name in ('wal_level', 'max_wal_senders', 'max_replication_slots', 'wal_sender_timeout', 'max_slot_wal_keep_size',
               'idle_replication_slot_timeout', 'synchronized_standby_slots')
"""

_STANDBYS = """
select (select count(*) from pg_stat_replication r where not exists
        (select from pg_replication_slots s where s.active_pid = r.pid and s.slot_type = 'logical')),
       array(select slot_name::text from pg_replication_slots where slot_type = 'physical' order by 1)
"""

_PUBLICATION = """
select puballtables, pubviaroot, pubinsert, pubupdate, pubdelete, pubtruncate from pg_publication where pubname = %s
"""

_TABLES = """
select c.oid::bigint, case when c.relispartition then pg_partition_root(c.oid)::oid::bigint end, n.nspname, c.relname,
       c.relkind = 'p', c.relreplident::text, p.attnames is not null,
       -- PostgreSQL 15 names generated columns among those that it publishes, and does not send them
       array(select a.attname::text from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and a.attname = any(p.attnames)
             and (a.attgenerated = '' or current_setting('server_version_num')::int >= 160000) order by a.attnum),
       exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'),
       has_schema_privilege(n.oid, 'usage'), has_table_privilege(c.oid, 'select'), row_security_active(c.oid),
       array(select a.attname::text from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum),
       array(select format_type(a.atttypid, a.atttypmod) from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum),
       array(select a.attname::text from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attnotnull order by a.attnum),
       array(select a.attname::text from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> '' order by a.attnum),
       (select json_agg(json_build_array(ic.relname, i.indisprimary, i.indisreplident, k.columns) order by ic.relname)
        from pg_index i join pg_class ic on ic.oid = i.indexrelid,
        lateral (select json_agg(a.attname order by k.n) as columns, bool_and(a.attnotnull) as not_null
                 from unnest(i.indkey::int2[]) with ordinality k(attnum, n)
                 join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum where k.n <= i.indnkeyatts) k
        where i.indrelid = c.oid and i.indisunique and i.indimmediate and i.indisvalid and k.not_null
        and i.indpred is null and i.indexprs is null)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
left join pg_publication_tables p on p.pubname = %s and p.schemaname = n.nspname and p.tablename = c.relname
where c.relkind in ('r', 'p') and c.relpersistence = 'p' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
order by n.nspname, c.relname
"""


def inspect_source(dsn: str, slot: str, publication: str) -> Source:
    """Everything that decides whether `publication` can be streamed through `slot`. Raises SourceError."""
    with connect(dsn, application_name="headrace-check") as conn, translated():
        row = conn.execute(_SERVER).fetchone()
        assert row is not None
        version, version_num, in_recovery, encoding, role, superuser, may, provider, senders, slots = row
        settings = dict(conn.execute(_SETTINGS).fetchall())
        standbys, physical = conn.execute(_STANDBYS).fetchall()[0]
        pids = tuple(int(conn.execute("select pg_backend_pid()").fetchall()[0][0]) for _ in range(3))
        source = Source(
            host=str(conninfo_to_dict(dsn).get("host") or ""),
            backend_pid=conn.info.backend_pid,
            backend_pids=pids,
            version=version,
            version_num=version_num,
            in_recovery=in_recovery,
            encoding=encoding,
            role=role,
            superuser=superuser,
            may_replicate=superuser or may,
            provider=provider,
            wal_level=settings["wal_level"],
            max_wal_senders=int(settings["max_wal_senders"]),
            wal_senders=senders,
            max_replication_slots=int(settings["max_replication_slots"]),
            replication_slots=slots,
            wal_sender_timeout_ms=int(settings["wal_sender_timeout"]),
            max_slot_wal_keep_mb=int(settings["max_slot_wal_keep_size"]),
            idle_slot_timeout_s=int(settings.get("idle_replication_slot_timeout", 0)),
            system=None,
            replication_failure="",
            replication_hint="",
            publication=find_publication(conn, publication),
            slot=inspect_slot(conn, slot),
            tables=tuple(read_tables(conn, publication)),
            trigger=inspect_trigger(conn, publication),
            filters=read_filters(conn, publication),
            standbys=standbys,
            physical_slots=tuple(physical),
            synchronized_standby_slots=settings.get("synchronized_standby_slots", ""),
        )
    try:
        with connect_replication(dsn, application_name="headrace-check") as replication:
            return msgspec.structs.replace(source, system=identify_system(replication))
    except SourceError as error:
        return msgspec.structs.replace(source, replication_failure=error.message, replication_hint=error.hint)


def find_publication(conn: psycopg.Connection[Any], name: str) -> Publication | None:
    """The publication's own settings. Raises SourceError."""
    with translated():
        row = conn.execute(_PUBLICATION, (name,)).fetchone()
    if row is None:
        return None
    sends = zip(("insert", "update", "delete", "truncate"), row[2:], strict=True)
    return Publication(name, row[0], row[1], tuple(operation for operation, sent in sends if sent))


def read_tables(conn: psycopg.Connection[Any], publication: str) -> list[Table]:
    """Every table but the system's; leaf partitions below their root, and by themselves where the publication
    names them. Raises SourceError."""
    with translated():
        rows = conn.execute(_TABLES, (publication,)).fetchall()
    tables: dict[int, Table] = {}
    leaves: dict[int, list[Table]] = {}
    for oid, root, *facts in rows:
        table = _table(facts, is_partition=root is not None)
        if root is not None and not table.partitioned:
            leaves.setdefault(root, []).append(table)
        if root is None or table.published:
            tables[oid] = table
    return [msgspec.structs.replace(table, partitions=tuple(leaves.get(oid, ()))) for oid, table in tables.items()]


def _table(facts: list[Any], *, is_partition: bool) -> Table:
    schema, table, partitioned, identity, published, published_columns, of_extension, usage, select, hidden, *rest = facts
    columns, types, not_null, generated, keys = rest
    return Table(
        schema=schema,
        table=table,
        identity=ReplicaIdentity(identity),
        columns=tuple(columns),
        types=tuple(types),
        not_null=tuple(not_null),
        keys=tuple(UniqueKey(index, tuple(names), primary, chosen) for index, primary, chosen, names in keys or ()),
        published=published,
        published_columns=tuple(published_columns),
        generated=tuple(generated),
        partitioned=partitioned,
        is_partition=is_partition,
        of_extension=of_extension,
        schema_usage=usage,
        select=select,
        row_security=hidden,
    )
