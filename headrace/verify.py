"""`headrace verify`: whether replicas hold what Postgres does, at one place of the stream, while everything goes on.

    some tenants at a time:  replicas held (appliers.as_of) -> source as of a place (cdc.as_of) -> log up to there
                             -> digests of both sides by tenant and table (appliers.compare) -> rows, where those differ

No false alarm, however much is written: both sides are as of the same place, exactly. What cannot be compared (quarantined,
waiting for values, still being copied) is said to be so, and is neither equal nor different. Keys are shown, values never.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

import apsw
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from appliers import compare, migration
from appliers.as_of import Held, Tail, read_tail
from appliers.catalog import Catalog
from appliers.compare import Difference, Digest, Texts
from appliers.errors import ReplayError, ReplicaLost, TenantError, TenantUnknown
from appliers.pgtext import rows_as_text
from appliers.place import SHARED_FILE, SHARED_NAME, replica_path
from appliers.reader import Directory
from appliers.replica import storage_error, tenant_of
from appliers.state import PartitionState, Tables, note_tables
from appliers.table import quote
from cdc.as_of import AsOf, source_as_of
from cdc.errors import CopyFailed
from cdc.lsn import format_lsn
from fanout.envelope import Position
from fanout.log import LogReader, open_reader
from fanout.tenancy import SHARED_TENANT, ByColumn, Fixed, Shared, Tenancy
from headrace import output
from headrace.config import Config
from headrace.source_tables import SourceTable, digests_of, rows_of, tenants_of

_TENANTS: Final = 500
_TRIES: Final = 20
_MOVED: Final = "a table was truncated or altered at this moment"
T = TypeVar("T")
_BYTES: Final = 1 << 30
"""Of replicas that are looked at together: one slot, one reading of the log's end, one query a table."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: `tenants` by name, and if there are none, all, or `sample` of them drawn at random."""

    tenants: tuple[str, ...] = ()
    shared: bool = False
    partition: int | None = None
    sample: int | None = None
    limit: int = 100


class TenantVerified(msgspec.Struct, frozen=True, kw_only=True):
    """One replica. `tenant` None: that of the shared tables. `reason`: why it was not compared. `brought`: it had records
    before it until the place, so a copy of it was brought there. `more`: differences beyond the limit."""

    tenant: str | None
    partition: int | None
    outcome: Literal["equal", "differs", "not compared"]
    reason: str = ""
    quarantined: bool = False
    lsn: str = ""
    rows: int = 0
    brought: bool = False
    differences: list[Difference] = []
    more: int = 0


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer; `replicas`: those that are not equal."""

    compared: int
    equal: int
    differ: int
    not_compared: int
    rows: int
    seconds: float
    left_out: list[str]
    """Columns whose override keeps less than Postgres has."""
    replicas: list[TenantVerified]


class _Target(NamedTuple):
    """A replica to look at. `name`: as in `state.db`."""

    name: str
    partition: int
    path: Path
    bytes: int

    @property
    def shared(self) -> bool:
        return self.name == SHARED_NAME

    @property
    def tenant(self) -> str | None:
        return None if self.shared else self.name


class Identity(NamedTuple):
    """A table by which rows can be asked for again. `columns`: of its key in replicas, in the Relation's order."""

    oid: int
    columns: tuple[str, ...]


def verify(
    config: Config, wanted: Wanted, pace: Callable[[int], None] = lambda _: None
) -> tuple[Verified, dict[str, Identity]]:
    """Compare, with a bar on standard error; answers with the tables in which rows differ. `pace` is called after some
    replicas, with the rows that were compared.

    Raises SourceError, LogError, ReplicasMissing, TenantUnknown,
    PointNotReached."""
    begun, found = time.monotonic(), list[TenantVerified]()
    with Directory(Path(config.replicas.path)) as directory, open_reader(config.log) as reader:
        targets = list(_targets(directory, wanted))
        run = _Run(config, directory, reader, wanted.limit)
        with _shown(len(targets)) as advance:
            for batch in _batches(targets):
                some = list(run.batch(batch))
                found += some
                advance(len(batch))
                pace(sum(one.rows for one in some))
            if not wanted.tenants and not wanted.shared and wanted.sample is None:
                found += run.unknown({target.name for target in targets}, wanted.partition)
    outcomes = Counter(one.outcome for one in found)
    done = Verified(
        compared=outcomes["equal"] + outcomes["differs"],
        equal=outcomes["equal"],
        differ=outcomes["differs"],
        not_compared=outcomes["not compared"],
        rows=sum(one.rows for one in found),
        seconds=round(time.monotonic() - begun, 3),
        left_out=sorted(run.left_out),
        replicas=[one for one in found if one.outcome != "equal"],
    )
    return done, run.identities


def _targets(directory: Directory, wanted: Wanted) -> Iterator[_Target]:
    root, count = directory.root, directory.partition_count
    for tenant in wanted.tenants:
        path = replica_path(root, tenant, count)
        if not path.exists() and tenant not in directory.quarantined():
            raise TenantUnknown("No replica of this tenant is here", tenant=tenant)
        yield _Target(tenant, directory.partition_of(tenant), path, 0)
    shared = root / SHARED_FILE
    everything = not wanted.tenants and not wanted.shared
    if (wanted.shared or (everything and wanted.partition is None and wanted.sample is None)) and shared.exists():
        yield _Target(SHARED_NAME, min(directory.partitions(), default=0), shared, 0)
    if everything:
        partitions = range(count) if wanted.partition is None else [wanted.partition]
        files = [file for partition in partitions for file in directory.files(partition)]
        if wanted.sample is not None and wanted.sample < len(files):
            files = random.sample(files, wanted.sample)
        for file in files:
            name = file.tenant or tenant_of(file.path)
            if name is not None:
                yield _Target(name, file.partition, file.path, file.bytes)


def _batches(targets: Iterable[_Target]) -> Iterator[list[_Target]]:
    batch: list[_Target] = []
    size = 0
    for target in targets:
        if batch and (len(batch) >= _TENANTS or size + target.bytes > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(target)
        size += target.bytes
    if batch:
        yield batch


class _Place(NamedTuple):
    """What all replicas of a batch are compared with."""

    source: AsOf
    place: Position
    tables: list[SourceTable]
    known: Tables


class _Run:
    """One call of `verify`."""

    def __init__(self, config: Config, directory: Directory, reader: LogReader, limit: int) -> None:
        self._config = config
        self._directory = directory
        self._reader = reader
        self._limit = limit
        self._tenancy = Tenancy(config.tenancy, config.placement.region)
        self.left_out: set[str] = set()
        self.identities: dict[str, Identity] = {}

    def batch(self, targets: Sequence[_Target], tries_left: int = _TRIES) -> Iterator[TenantVerified]:
        """Replicas that are looked at together."""
        saved, quarantined, known = self._directory.partitions(), self._directory.quarantined(), self._directory.tables()
        held: list[tuple[_Target, Held]] = []
        with ExitStack() as stack:
            for target in targets:
                state = saved.get(target.partition, PartitionState(target.partition))
                if target.name in quarantined:
                    reason = f"it is quarantined: {quarantined[target.name].error}"
                    yield msgspec.structs.replace(_not_compared(target, reason), quarantined=True)
                elif not state.ready or state.offset < 0:
                    yield _not_compared(target, "its first copy is under way, or not saved yet")
                else:
                    try:
                        name = SHARED_TENANT if target.shared else target.name
                        one = Held(target.path, name, state, shared=target.shared)
                    except ReplicaLost as error:
                        yield _not_compared(target, error.message)
                    except TenantError as error:
                        yield _broken(target, error.message)
                    else:
                        stack.callback(one.close)
                        held.append((target, one))
            found = list(self._compared(held, saved, known)) if held else []
        again = [target for (target, _), one in zip(held, found, strict=True) if one.reason == _MOVED]
        yield from (one for one in found if one.reason != _MOVED or not tries_left)
        if again and tries_left:
            yield from self.batch(again, tries_left - 1)

    def _compared(
        self, held: Sequence[tuple[_Target, Held]], saved: Mapping[int, PartitionState], known: Tables
    ) -> Iterator[TenantVerified]:
        names = [target.name for target, _ in held if not target.shared]
        with self._source(lambda source, table: digests_of(source, table, names, shared=len(names) < len(held))) as read:
            source, tables, digests = read
            generation = max(saved[target.partition].generation for target, _ in held)
            place = Position(generation, source.lsn, -1)
            tails = read_tail(self._reader, {t.partition: saved[t.partition].offset for t, _ in held}, place, names)
            at = _Place(source, place, tables, known)
            for target, one in held:
                mine = [found.get(target.name, Digest()) for found in digests]
                yield self._replica(target, one, at, tails[target.partition], mine)

    def _replica(self, target: _Target, one: Held, at: _Place, tail: Tail, digests: Sequence[Digest]) -> TenantVerified:
        catalog = Catalog(self._config.overrides())
        note_tables(catalog, at.known)
        tables = [(table, digest) for table, digest in zip(at.tables, digests, strict=True) if _belongs(table, target)]
        try:
            with ExitStack() as stack:
                if one.half:
                    return _broken(target, "its copy was never finished")
                conn = one.conn
                brought = one.is_touched(tail) or not _has_shapes(conn, tables)
                if brought:
                    as_of = stack.enter_context(one.at(at.place, tail, catalog))
                    if as_of.conn is None:
                        return _not_compared(target, as_of.missing)
                    conn = as_of.conn
                found = list[Difference]()
                count = 0
                for difference in self._differences(conn, target, at.source, tables, catalog):
                    count += 1
                    if len(found) < self._limit:
                        found.append(difference)
        except CopyFailed:
            return _not_compared(target, _MOVED)
        except TenantError as error:
            return _broken(target, error.message)
        except ReplayError as error:
            return _not_compared(target, error.message)
        except apsw.Error as error:
            broken = storage_error(error, target.path)
            if not isinstance(broken, TenantError):
                raise broken from error
            return _broken(target, broken.message)
        return TenantVerified(
            tenant=target.tenant,
            partition=None if target.shared else target.partition,
            outcome="differs" if count else "equal",
            lsn=format_lsn(at.place.commit_lsn),
            rows=sum(digest.rows for _, digest in tables),
            brought=brought,
            differences=found,
            more=count - len(found),
        )

    def _differences(
        self,
        conn: apsw.Connection,
        target: _Target,
        source: AsOf,
        tables: Sequence[tuple[SourceTable, Digest]],
        catalog: Catalog,
    ) -> Iterator[Difference]:
        there = migration.shapes(conn)
        for table, digest in tables:
            relation = table.published.relation
            shape = there.pop(relation.oid, None)
            if shape is None:
                if digest.rows:
                    identity = tuple(column.name for column in relation.columns if column.key)
                    self.identities[relation.name] = Identity(relation.oid, identity)
                    with source.held([table.published]):
                        rows = rows_of(source, table, target.tenant)
                        yield from (Difference(relation.name, "missing", _key(row, table, ())) for row in rows)
                continue
            columns = compare.comparable(conn, shape.name)
            if [column.source.name for column in columns] != table.names:
                yield Difference(shape.name, "columns", (), tuple(table.names))
            elif compare.digest_of(conn, shape.name, columns) != digest:
                key = _key_columns(conn, shape.name)
                self.identities[shape.name] = Identity(relation.oid, tuple(name for name in table.names if name in key))
                mine = rows_as_text(conn, shape.name, columns)
                with source.held([table.published]):
                    yield from compare.differences(shape.name, table.names, key, rows_of(source, table, target.tenant), mine)
        for shape in there.values():
            if conn.execute(f"select exists (select 1 from {quote(shape.name)})").get:
                yield Difference(shape.name, "table", ())
        plans = {plan.relation.oid: plan for plan in catalog.current(shared=target.shared)}
        for oid, shape in migration.shapes(conn).items():
            plan = plans.get(oid)
            if plan is not None and plan.shape == shape.shape and plan.name == shape.name:
                yield from (Difference(shape.name, "index", (name,)) for name in migration.unlike_indexes(conn, plan))
        damage = conn.execute("pragma integrity_check(1)").get
        if damage != "ok":
            yield Difference("", "damage", (str(damage).partition("\n")[0],))

    def unknown(self, names: set[str], partition: int | None) -> Iterator[TenantVerified]:
        """Tenants of which Postgres has rows, and there is neither a replica nor a record on its way."""
        saved = {p: state for p, state in self._directory.partitions().items() if state.ready and partition in (None, p)}
        if not saved:
            return
        with self._source(tenants_of) as (source, _, tenants):
            place = Position(max(state.generation for state in saved.values()), source.lsn, -1)
            tails = read_tail(self._reader, {p: state.offset for p, state in saved.items()}, place, ())
        for tenant in dict.fromkeys(itertools.chain.from_iterable(tenants)):
            number = self._directory.partition_of(tenant)
            known = tenant in names or number not in tails or tenant.encode() in tails[number].newest
            if not known and not replica_path(self._directory.root, tenant, self._directory.partition_count).exists():
                reason = "Postgres has rows of this tenant, and there is no replica"
                yield TenantVerified(tenant=tenant, partition=number, outcome="differs", reason=reason)

    @contextmanager
    def _source(self, read: Callable[[AsOf, SourceTable], T]) -> Iterator[tuple[AsOf, list[SourceTable], list[T]]]:
        """As it is now, and what is read of each of its tables."""
        for tries_left in reversed(range(_TRIES)):
            with ExitStack() as stack:
                source = stack.enter_context(source_as_of(self._config.dsn(), self._config.source.publication))
                tables = self._tables(source)
                try:
                    with source.held([table.published for table in tables]):
                        found = [read(source, table) for table in tables]
                except CopyFailed:  # truncated or altered at this moment
                    if not tries_left:
                        raise
                    continue
                yield source, tables, found
                return

    def _tables(self, source: AsOf) -> list[SourceTable]:
        """Those of the publication whose rows are wanted, without the columns that cannot be compared."""
        overrides, found = self._config.overrides(), list[SourceTable]()
        for published in source.tables:
            relation = published.relation
            kept = [c for c in relation.columns if overrides.get(f"{relation.name}.{c.name}") in (None, "text")]
            self.left_out |= {f"{relation.name}.{c.name}" for c in relation.columns if c not in kept}
            relation = msgspec.structs.replace(relation, columns=tuple(kept))
            route = self._tenancy.route(relation)
            if isinstance(route, ByColumn | Fixed | Shared):
                found.append(SourceTable(msgspec.structs.replace(published, relation=relation), route))
        return found


def _belongs(table: SourceTable, target: _Target) -> bool:
    match table.route:
        case Fixed(tenant):
            return tenant == target.name
        case Shared():
            return target.shared
        case ByColumn(_, on_null):
            return on_null == "shared" if target.shared else True


# --- the replica's side ---


def _shape(table: SourceTable) -> list[tuple[str, int, int]]:
    return [(column.name, column.type_oid, column.typmod) for column in table.published.relation.columns]


def _has_shapes(conn: apsw.Connection, tables: Sequence[tuple[SourceTable, Digest]]) -> bool:
    """Whether the replica has the tables of these rows as the source has them, and no others."""
    there = migration.shapes(conn)
    for table, digest in tables:
        shape = there.pop(table.published.relation.oid, None)
        if shape is None:
            if digest.rows:
                return False
        elif [(c.source.name, c.source.type_oid, c.source.typmod) for c in compare.comparable(conn, shape.name)] != _shape(
            table
        ):
            return False
    return not there


def _key(row: Texts, table: SourceTable, key: Sequence[str]) -> tuple[str, ...]:
    names = key or [column.name for column in table.published.relation.columns if column.key]
    return tuple(str(value) for name, value in zip(table.names, row, strict=True) if name in names)


def _key_columns(conn: apsw.Connection, table: str) -> list[str]:
    """The source's names of the replica's key."""
    text = conn.execute("select primary_key from _headrace_tables where name = ?", (table,)).get
    names = {column.name: column.source.name for column in compare.comparable(conn, table)}
    return [names[name] for name in msgspec.json.decode(str(text), type=list[str]) if name in names]


# --- words ---


def _not_compared(target: _Target, reason: str) -> TenantVerified:
    partition = None if target.shared else target.partition
    return TenantVerified(tenant=target.tenant, partition=partition, outcome="not compared", reason=reason)


def _broken(target: _Target, reason: str) -> TenantVerified:
    partition = None if target.shared else target.partition
    return TenantVerified(tenant=target.tenant, partition=partition, outcome="differs", reason=reason)


@contextmanager
def _shown(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal."""
    if not output.err.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("Verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.err, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def show_verified(done: Verified) -> None:
    """A line for what was found, and tables of what is not well."""
    rate = done.rows / done.seconds if done.seconds else 0.0
    facts = {
        "compared": f"{done.compared:,} replicas, {done.rows:,} rows in {done.seconds:.1f} s ({rate:,.0f} rows/s)",
        "equal": f"{done.equal:,}",
        "differ": f"{done.differ:,}" if done.differ else None,
        "not compared": f"{done.not_compared:,}" if done.not_compared else None,
        "columns left out": ", ".join(done.left_out) or None,
    }
    output.print_facts("Verified", facts)
    rows = [
        (one.tenant or SHARED_TENANT, d.table, d.kind, ", ".join(d.key), ", ".join(d.columns))
        for one in done.replicas
        for d in one.differences
    ]
    if rows:
        output.print_table("Differences", ("tenant", "table", "what", "key", "columns"), rows)
    for one in done.replicas:
        if one.more:
            output.out.print(f"{one.tenant or SHARED_TENANT}: {one.more:,} more")
    reasons = [(one.tenant or SHARED_TENANT, one.outcome, one.reason) for one in done.replicas if one.reason]
    if reasons:
        output.print_table("Without a comparison of rows", ("tenant", "", "because"), reasons)
