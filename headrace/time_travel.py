"""`headrace time-travel`: one tenant as of any of its transactions. Words, options and answers; what they mean is decided in
`appliers.timetravel`.

    info     bookmarks, what is served, and how far back     restore, undo, resume   what readers get
    clone    a database of its own                           diff, history           what changed
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

import apsw
import msgspec

from appliers.difference import HEADINGS, Change, changes, compared_tables
from appliers.errors import CloneExists, TenantUnknown, TimeInvalid
from appliers.history.reading import Past
from appliers.place import is_missing, replica_path
from appliers.reader import Directory, ReplicaReader, position_in
from appliers.snapshots.store import Store, open_store
from appliers.timetravel import pins
from appliers.timetravel import restore as restoring
from appliers.timetravel.bookmarks import Bookmarks
from appliers.timetravel.rows import versions_of
from appliers.timetravel.travel import AsOf, Travel
from cdc.connection import connect
from cdc.lsn import format_lsn
from fanout.envelope import START, Position, parse_generation_lsn
from fanout.log import open_reader
from fanout.tenancy import Tenancy
from headrace import output
from headrace.config import Config
from headrace.errors import CommandError
from headrace.places import parse_time_us
from headrace.records import iso_ms
from headrace.recovery_sql import Recovery, recovery_of

_BOOKMARK: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{8}){2}-[0-9a-fA-F]{32}")


class Wanted(NamedTuple):
    """A place as it was given: at most one of the three."""

    timestamp: str = ""
    bookmark: str = ""
    lsn: str = ""

    @property
    def is_given(self) -> bool:
        """Whether any is."""
        return any(self)


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """`bookmark`: of the place that was asked for, or of the live replica. `served`: what readers get; None: the live
    replica. `since`: any later time can be reached; None: as far as the log goes. `bound`: what bounds it."""

    tenant: str
    bookmark: str
    position: str
    timestamp: str | None
    served: str | None
    undo: str | None
    since: str | None
    bound: str
    days: float
    snapshots: int
    snapshot_bytes: int
    history_bytes: int


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What D1's API answers, and what was done. `bookmark`: None: the live replica is served."""

    bookmark: str | None
    previous_bookmark: str
    message: str
    commit_time: str | None
    rows: int
    seconds: float


class Cloned(msgspec.Struct, frozen=True, kw_only=True):
    """A database of its own."""

    name: str
    tenant: str
    bookmark: str
    commit_time: str | None
    path: str
    seconds: float


class RowVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A row after a transaction; `row` None: it was deleted. `commit_time`, `xid`: null for what is known from before."""

    bookmark: str
    lsn: str
    commit_time: str | None
    xid: int | None
    row: dict[str, str | None] | None


class Differs(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a tenant's rows between two places."""

    tenant: str
    before: str
    """A bookmark."""
    after: str
    """A bookmark; of the live replica when no other place was given."""
    changes: list[Change]


class Here(NamedTuple):
    """A tenant in this directory of replicas; neither the log nor the object store is asked."""

    path: Path
    tenant: str
    bookmarks: Bookmarks

    def live(self) -> Position:
        """Where its live replica is."""
        return START if is_missing(self.path) else position_in(self.path, self.tenant).position


def here(config: Config, tenant: str) -> Here:
    """Raises ReplicasMissing, StateForeign, StorageUnavailable."""
    with Directory(Path(config.replicas.path)) as directory:
        path = replica_path(directory.root, tenant, directory.partition_count)
        return Here(path, tenant, Bookmarks(directory.log_identity, tenant))


class Machine:
    """Everything for one tenant. `open_machine` makes one."""

    def __init__(self, config: Config, tenant: str, past: Past, store: Store | None) -> None:
        self.tenant = tenant
        self.root = Path(config.replicas.path)
        self.past = past
        self.days = days_of(config, tenant)
        self.travel = Travel(past, store, config.overrides(), self.days)
        self.here = Here(replica_path(self.root, tenant, past.partitions), tenant, self.travel.bookmarks)

    def require_known(self) -> None:
        """Raises TenantUnknown."""
        if is_missing(self.here.path) and not self.past.is_known:
            raise TenantUnknown("Nothing is known of this tenant", tenant=self.tenant)

    def place(self, wanted: Wanted) -> Position:
        """Raises TimeTravelError, CommandError, PointTooEarly, PointNotReached."""
        if sum(map(bool, wanted)) > 1:
            given = [f"--{name}" for name, value in wanted._asdict().items() if value]
            raise CommandError(f"Cannot use {' and '.join(given)} together", hint="Give one of them.")
        if wanted.timestamp:
            return self.travel.at_time(_time_us(wanted.timestamp), wanted.timestamp)
        if wanted.bookmark:
            return self.here.bookmarks.parse(wanted.bookmark)
        if wanted.lsn:
            found = parse_generation_lsn(wanted.lsn)
            if found is None:
                raise CommandError("Not an LSN", hint="Give one such as 0/16B3748, or 2:0/16B3748 with its generation.")
            generation, lsn = found
            return self.travel.at_lsn(lsn, generation)
        return self.here.live()

    @contextmanager
    def at(self, wanted: Wanted) -> Iterator[tuple[str, apsw.Connection]]:
        """The tenant as of a place, by default as it is now: its bookmark, and what is read. Raises as `restore`."""
        if wanted.is_given:
            point = self.place(wanted)
            with restoring.as_of(self.travel, point) as conn:
                yield self.bookmark(point), conn
            return
        with ReplicaReader(self.here.path, self.tenant) as reader, reader.snapshot():
            yield self.bookmark(reader.position().position), reader.connection

    def bookmark(self, position: Position) -> str:
        """As text."""
        return self.here.bookmarks.of(position)


@contextmanager
def open_machine(config: Config, tenant: str) -> Iterator[Machine]:
    """Raises LogError, StoreMisconfigured, StoreUnavailable."""
    snapshots = config.snapshots
    with open_reader(config.log) as reader:
        store = open_store(snapshots.url, snapshots.options) if snapshots.url else None
        yield Machine(config, tenant, Past(reader, store, tenant), store)


def days_of(config: Config, tenant: str) -> float:
    """How far back a tenant may be taken."""
    snapshots = config.snapshots
    found = (days for pattern, days in snapshots.tenant_days.items() if fnmatchcase(tenant, pattern))
    return next(found, snapshots.days)


def _time_us(text: str) -> int:
    """ISO 8601, Unix seconds, or an age. Raises TimeInvalid."""
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return int(float(text) * 1_000_000) if "." in text else int(text) * 1_000_000
        return parse_time_us(text)
    except (ValueError, OverflowError):
        hint = "Give ISO 8601 (2026-01-31T12:00:00Z), Unix seconds, or an age such as 90s, 10m, 2h, 1d."
        raise TimeInvalid(f"Invalid timestamp '{text}'", hint=hint) from None


def bookmark_at(config: Config, tenant: str, wanted: Wanted) -> str:
    """The bookmark of a place, and nothing more. Raises TenantUnknown, and as `Machine.place`."""
    with open_machine(config, tenant) as machine:
        machine.require_known()
        return machine.bookmark(machine.place(wanted))


def info(config: Config, tenant: str, wanted: Wanted) -> Info:
    """Raises as `Machine.place`."""
    with open_machine(config, tenant) as machine:
        machine.require_known()
        position = machine.place(wanted)
        pin = pins.pin_of(machine.here.path)
        reach = machine.travel.reach(time.time_ns() // 1_000_000)
        before = pin.before
        return Info(
            tenant=tenant,
            bookmark=machine.bookmark(position),
            position=f"{position.generation}:{format_lsn(position.commit_lsn)}",
            timestamp=wanted.timestamp or None,
            served=pin.now.bookmark if pin.now.file else None,
            undo=None if before is None else before.bookmark if before.file else "live",
            since=None if reach.since_ms is None else iso_ms(reach.since_ms),
            bound=reach.bound,
            days=machine.days,
            snapshots=reach.snapshots,
            snapshot_bytes=reach.snapshot_bytes,
            history_bytes=reach.history_bytes,
        )


def restore(config: Config, tenant: str, wanted: Wanted) -> Restored:
    """Raises as `Machine.place`, TenantError, StorageUnavailable."""
    begun = time.monotonic()
    with open_machine(config, tenant) as machine:
        if not wanted.is_given:
            raise CommandError("Restore to what?", hint="Give --timestamp, --bookmark or --lsn.")
        point = machine.place(wanted)
        done = restoring.restore(machine.travel, machine.here.path, point, machine.here.live())
        return _answer(done, f"Tenant {tenant} is served as of bookmark {done.bookmark}", begun)


def undo(config: Config, tenant: str) -> Restored:
    """Raises NothingToUndo, ReplicasMissing, StateForeign, StorageUnavailable."""
    begun, at = time.monotonic(), here(config, tenant)
    done = restoring.undo(at.path, at.live(), at.bookmarks)
    served = f"as of bookmark {done.bookmark}" if done.bookmark else "live"
    return _answer(done, f"Tenant {tenant} is served {served} again", begun)


def resume(config: Config, tenant: str) -> Restored:
    """Raises ReplicasMissing, StateForeign, StorageUnavailable."""
    begun, at = time.monotonic(), here(config, tenant)
    return _answer(restoring.resume(at.path, at.live(), at.bookmarks), f"Tenant {tenant} is served live", begun)


def _answer(done: restoring.Restored, message: str, begun: float) -> Restored:
    return Restored(
        bookmark=done.bookmark or None,
        previous_bookmark=done.previous_bookmark,
        message=message,
        commit_time=_commit_time(done.built),
        rows=done.built.rows if done.built is not None else 0,
        seconds=round(time.monotonic() - begun, 3),
    )


def _commit_time(built: AsOf | None) -> str | None:
    return iso_us(built.commit_time_us) if built is not None and built.commit_time_us else None


def iso_us(time_us: int) -> str:
    """Unix microseconds -> ISO 8601 UTC."""
    moment = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(microseconds=time_us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def clone(config: Config, tenant: str, name: str, wanted: Wanted) -> Cloned:
    """Raises CloneExists, and as `restore`."""
    begun = time.monotonic()
    with open_machine(config, tenant) as machine:
        if not is_missing(replica_path(machine.root, name, machine.past.partitions)):
            raise CloneExists("There is a tenant of this name", tenant=name)
        point = machine.place(wanted)
        made = restoring.clone(machine.travel, machine.root, name, point)
        return Cloned(
            name=name,
            tenant=tenant,
            bookmark=machine.bookmark(point),
            commit_time=_commit_time(made),
            path=str(restoring.clone_path(machine.root, name)),
            seconds=round(time.monotonic() - begun, 3),
        )


def unclone(config: Config, name: str) -> None:
    """Remove a clone. Raises CommandError when there is none."""
    if not restoring.remove_clone(Path(config.replicas.path), name):
        raise CommandError("There is no clone of this name", hint="`ls` the directory `clones` of the replicas.")


def history(config: Config, tenant: str, table: str, key: Sequence[str]) -> list[RowVersion]:
    """`key`: `column=value`. Raises TableUnknown, CommandError, and as `restore`."""
    if not all("=" in part for part in key):
        raise CommandError("A key is given as column=value", hint="Such as `id=7`; the tenant's column may be left out.")
    values = {name: value for name, _, value in (part.partition("=") for part in key)}
    with open_machine(config, tenant) as machine:
        return [
            RowVersion(
                bookmark=machine.bookmark(version.position),
                lsn=format_lsn(version.position.commit_lsn),
                commit_time=iso_us(version.commit_time_us) if version.commit_time_us else None,
                xid=version.xid or None,
                row=version.row,
            )
            for version in versions_of(machine.travel, table, values)
        ]


# --- what changed ---


def wanted_of(text: str) -> Wanted:
    """A place as one word: a bookmark, an LSN, or a time."""
    if _BOOKMARK.fullmatch(text):
        return Wanted(bookmark=text)
    return Wanted(lsn=text) if parse_generation_lsn(text) else Wanted(timestamp=text)


@contextmanager
def _two(config: Config, tenant: str, before: str, after: str) -> Iterator[_Two]:
    with open_machine(config, tenant) as machine:
        machine.require_known()
        with (
            machine.at(wanted_of(before)) as (from_bookmark, from_),
            machine.at(wanted_of(after) if after else Wanted()) as (to_bookmark, to),
        ):
            yield _Two(from_bookmark, from_, to_bookmark, to)


class _Two(NamedTuple):
    before_bookmark: str
    before: apsw.Connection
    after_bookmark: str
    after: apsw.Connection


def diff(config: Config, tenant: str, before: str, after: str) -> Differs:
    """`after` empty: now. Raises as `restore`."""
    with _two(config, tenant, before, after) as two:
        found = list(changes(two.before, two.after))
        return Differs(tenant=tenant, before=two.before_bookmark, after=two.after_bookmark, changes=found)


def recovery(config: Config, tenant: str, before: str, after: str, *, empty_new_tables: bool) -> Recovery:
    """SQL that brings the tenant's rows in Postgres back from `after` to `before`. Raises as `restore`, Unrecoverable,
    SourceError."""
    tenancy = Tenancy(config.tenancy, config.placement.region)
    with _two(config, tenant, before, after) as two, closing(connect(config.dsn())) as conn:
        about = [
            f"Tenant {tenant}: from {two.after_bookmark}",
            f"back to {two.before_bookmark}",
        ]
        return recovery_of(
            conn,
            compared_tables(two.before, two.after),
            changes(two.before, two.after),
            tenancy,
            tenant,
            about=about,
            new_tables="empty" if empty_new_tables else "keep",
        )


# --- for people ---


def show_info(found: Info) -> None:
    """The bookmark, and what can be done with it."""
    output.print_facts(
        f"Tenant {found.tenant}",
        {
            f"bookmark of {found.timestamp}" if found.timestamp else "bookmark": found.bookmark,
            "position": found.position,
            "served": "live" if found.served is None else f"pinned to {found.served}",
            "undo goes to": found.undo or "-",
            "reaches back to": f"{found.since or 'what the log has'} ({found.bound})",
            "kept for": f"{found.days:g} days",
            "kept": f"{found.snapshots} snapshots, {output.bytes_text(found.snapshot_bytes)}; "
            f"{output.bytes_text(found.history_bytes)} of history",
        },
    )
    output.out.print(f"\nheadrace time-travel restore {found.tenant} --bookmark {found.bookmark}", soft_wrap=True)


def show_restored(done: Restored, tenant: str) -> None:
    """What is served, and the way back."""
    facts: dict[str, object] = {"took": f"{done.seconds:.3f} s"}
    if done.commit_time is not None:
        facts["last commit in it"] = done.commit_time
    facts["previous bookmark"] = done.previous_bookmark
    output.print_facts(done.message, facts)
    output.out.print(f"\nTo go back: headrace time-travel undo {tenant}", soft_wrap=True)


def show_cloned(done: Cloned) -> None:
    """Where it is."""
    facts: dict[str, object] = {"as of": done.bookmark, "file": done.path, "took": f"{done.seconds:.3f} s"}
    if done.commit_time is not None:
        facts["last commit in it"] = done.commit_time
    output.print_facts(f"{done.name}, a clone of {done.tenant}", facts)


def show_history(found: list[RowVersion]) -> None:
    """A line a version."""
    rows = [
        (v.commit_time or "-", v.lsn, v.xid or "-", "deleted" if v.row is None else msgspec.json.encode(v.row).decode())
        for v in found
    ]
    output.print_table("Versions of the row", ("committed", "LSN", "xid", "row"), rows)


def show_diff(found: Differs) -> None:
    """A line a row."""
    output.print_table(
        f"Tenant {found.tenant}: {len(found.changes):,} rows differ", HEADINGS, [change.cells for change in found.changes]
    )


def show_recovery(made: Recovery) -> None:
    """The script on standard output, and what it is on standard error."""
    output.out.print(made.sql, markup=False, highlight=False, soft_wrap=True)
    output.err.print(f"{made.inserts} rows come back, {made.updates} change back, {made.deletes} go.")
    for left in made.left_out:
        where = f"{left.table}.{left.column}" if left.column else left.table
        output.err.print(f"Left out: {where} ({left.rows} rows): {left.reason}", markup=False)
