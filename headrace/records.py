"""One record of the log for people (`line`) and for programs (`document`).

Values of rows are sensitive: no line has them, and a document only where `rows=True` asks for them.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from cdc.lsn import format_lsn
from cdc.pgoutput import UNCHANGED
from fanout.envelope import (
    Catalog,
    Changes,
    Close,
    CopyBegin,
    CopyEnd,
    Dropped,
    Envelope,
    Op,
    Position,
    Progress,
    RefillBegin,
    RefillEnd,
    Resync,
    Run,
    Schema,
    Tables,
    Truncate,
)
from fanout.log import Record

_KINDS: Final[dict[type[Envelope], str]] = {
    Changes: "changes",
    Schema: "schema",
    Catalog: "catalog",
    Truncate: "truncate",
    Progress: "progress",
    CopyBegin: "copy-begin",
    CopyEnd: "copy-end",
    Close: "close",
    RefillBegin: "refill-begin",
    RefillEnd: "refill-end",
    Tables: "tables",
    Dropped: "dropped",
    Resync: "resync",
}


KINDS: Final = frozenset({*_KINDS.values(), "copy"})
"""What `kind_of` answers."""


class Shown(msgspec.Struct, frozen=True):
    """A record with its content."""

    record: Record
    body: Envelope


def tenant_of(record: Record) -> str | None:
    """The tenant; None for everybody's."""
    return None if record.key is None else record.key.decode()


def kind_of(body: Envelope) -> str:
    """Its kind in a word; `copy` for rows of a first copy."""
    return "copy" if isinstance(body, Changes) and body.chunk < 0 else _KINDS[type(body)]


def position_of(body: Envelope) -> Position:
    """Where the record stands in the history of the source."""
    match body:
        case Changes(generation, commit_lsn, chunk):
            return Position(generation, commit_lsn, chunk)
        case Progress(generation, lsn):
            return Position(generation, lsn, 0)
        case CopyBegin(generation):
            return Position(generation, 0, 0)
        case _:
            return Position(body.generation, body.commit_lsn, 0)


def rows_of(runs: Sequence[Run], schemas: Mapping[int, Schema]) -> dict[str, dict[str, int]]:
    """Table -> operation -> number of rows. A table that nobody announced is its digest."""
    counts: dict[str, dict[str, int]] = {}
    for run in runs:
        table = counts.setdefault(_table(run.schema, schemas), {})
        name = Op(run.op).name.lower()
        table[name] = table.get(name, 0) + (len(run.rows) // 2 if run.op == Op.REKEY else len(run.rows))
    return counts


def _table(digest: int, schemas: Mapping[int, Schema]) -> str:
    schema = schemas.get(digest)
    return f"#{digest:x}" if schema is None else schema.name


def tables_of(body: Envelope, schemas: Mapping[int, Schema]) -> set[str]:
    """The tables that a record is about; none of one that is about all of them."""
    match body:
        case Changes() | Resync():
            return {_table(run.schema, schemas) for run in body.runs}
        case Schema():
            return {body.name}
        case Truncate():
            return {_table(digest, schemas) for digest in body.schemas}
        case RefillBegin() | RefillEnd():
            return {_table(body.schema, schemas)}
        case _:
            return set()


def detail(body: Envelope, schemas: Mapping[int, Schema]) -> str:
    """What is in a record, in a few words; no value of a row."""
    match body:
        case Changes():
            tables = rows_of(body.runs, schemas).items()
            text = "; ".join(f"{t}: {', '.join(f'{n} {op}' for op, n in ops.items())}" for t, ops in tables)
            return text if body.last else f"{text} ..."
        case Resync():
            tables = rows_of(body.runs, schemas).items()
            rows = "; ".join(f"{table}: {sum(ops.values())} rows" for table, ops in tables)
            return " ".join(filter(None, (f"number {body.number}", rows, "end" if body.last else "")))
        case Schema():
            return f"{body.name}: {len(body.relation.columns)} columns"
        case Catalog():
            return f"{len(body.tables)} tables"
        case Tables():
            return f"{len(body.schemas)} tables"
        case Dropped():
            return f"{len(body.oids)} tables"
        case Truncate():
            return ", ".join(_table(digest, schemas) for digest in body.schemas)
        case RefillBegin() | RefillEnd():
            return _table(body.schema, schemas)
        case CopyEnd():
            return f"{body.rows} rows"
        case _:
            return ""


def line(shown: Shown, schemas: Mapping[int, Schema]) -> str:
    """A record as one line of text."""
    record, body = shown.record, shown.body
    where = f"{record.partition}/{record.offset}" if record.key is not None else f"*/{record.offset}"
    position = position_of(body)
    at = f"{position.generation}:{format_lsn(position.commit_lsn)}" + (f":{position.chunk}" if position.chunk > 0 else "")
    tenant = "-" if record.key is None else printable(record.key.decode())
    size = f"{len(record.value)} B"
    head = f"{iso_ms(record.time_ms)}  {where:<10}  {tenant:<12}  {kind_of(body):<10}  {at:<12}  {size:>8}"
    return f"{head}  {detail(body, schemas)}".rstrip()


def document(shown: Shown, schemas: Mapping[int, Schema], *, rows: bool) -> dict[str, Any]:
    """A record as JSON will show it; the rows themselves only with `rows`."""
    record, body = shown.record, shown.body
    position = position_of(body)
    content: dict[str, Any] = {
        "partition": record.partition,
        "offset": record.offset,
        "time": iso_ms(record.time_ms),
        "tenant": tenant_of(record),
        "kind": kind_of(body),
        "generation": position.generation,
        "lsn": format_lsn(position.commit_lsn),
        "chunk": position.chunk,
        "bytes": len(record.value),
    }
    match body:
        case Changes():
            content |= {
                "last": body.last,
                "xid": body.xid,
                "commit_time": iso_ms(body.commit_time_us // 1000) if body.commit_time_us else None,
                "rows": rows_of(body.runs, schemas),
            }
            if rows:
                content["runs"] = [_run(run, schemas) for run in body.runs]
        case Resync():
            content |= {"number": body.number, "last": body.last, "rows": rows_of(body.runs, schemas)}
            if rows:
                content["runs"] = [_run(run, schemas) for run in body.runs]
        case Schema():
            content |= {"table": body.name, "columns": [column.name for column in body.relation.columns]}
        case Truncate():
            content["tables"] = [_table(digest, schemas) for digest in body.schemas]
        case RefillBegin() | RefillEnd():
            content["tables"] = [_table(body.schema, schemas)]
        case CopyEnd():
            content["rows"] = body.rows
        case _:
            pass
    return content


def _run(run: Run, schemas: Mapping[int, Schema]) -> dict[str, Any]:
    schema = schemas.get(run.schema)
    columns = None if schema is None else [c.name for c in schema.relation.columns]
    keys = set() if schema is None or run.full else {c.name for c in schema.relation.columns if c.key}

    def named(row: Sequence[Any], *, old: bool) -> Any:
        # what is unchanged is left out, and of an old row known by its key all that is not the key
        if columns is None:
            return [{"unchanged": True} if value is UNCHANGED else value for value in row]
        pairs = [(name, value) for name, value in zip(columns, row, strict=True) if value is not UNCHANGED]
        return {name: value for name, value in pairs if not (old and keys) or name in keys}

    if run.op == Op.REKEY:
        pairs = zip(run.rows[::2], run.rows[1::2], strict=True)
        rows: list[Any] = [{"old": named(old, old=True), "new": named(new, old=False)} for old, new in pairs]
    else:
        rows = [named(row, old=run.op in (Op.DELETE, Op.DISCARD)) for row in run.rows]
    return {"table": _table(run.schema, schemas), "op": Op(run.op).name.lower(), "rows": rows}


def printable(tenant: str) -> str:
    """A tenant id on a line: as it is, or quoted when it is empty or would break the line."""
    return tenant if tenant and tenant.isprintable() else repr(tenant)


def iso_ms(time_ms: int) -> str:
    """Unix milliseconds -> `2026-01-31T12:00:00.000Z`."""
    moment = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"
