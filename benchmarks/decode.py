"""What one row costs in each function it passes, in microseconds of CPU.

Plain loops in this process, the best of some rounds; no server and no log. The rows are the workload's: ten a
transaction, one tenant each.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import apsw

from appliers.apply import Numbered, Replica
from appliers.catalog import Catalog
from appliers.replica import Template
from benchmarks import frames
from benchmarks.report import Report
from benchmarks.workload import PARTITIONS, ROWS_A_TRANSACTION
from cdc import pgoutput
from cdc.facts import TableFacts
from cdc.relation import Relation
from cdc.transaction import Assembler, Transaction
from fanout import envelope
from fanout.envelope import Changes
from fanout.router import Routed, Router
from fanout.tenancy import Rule, Tenancy

_TENANTS = 100
_TRANSACTIONS = 20
_FRAMES_A_READ = 5000
_ROWS = _TENANTS * _TRANSACTIONS * ROWS_A_TRANSACTION


def run(report: Report, rounds: int) -> None:
    """Measure and print."""
    stream = [frames.relation(), *(frame for each in frames.load(_TENANTS, _TRANSACTIONS) for frame in each)]
    transactions = list(Assembler().feed(_with_relation_inside(stream)))
    routed = [record for record in _router_routes(transactions)() if record.key is not None]
    bodies = [envelope.decode(record.value) for record in routed]
    changes = [body for body in bodies if isinstance(body, Changes)]
    rows = [row for body in changes for run_ in body.runs for row in run_.rows]

    def decode_frames() -> None:
        decode = pgoutput.decode
        for frame in stream:
            decode(frame)

    def assemble() -> None:
        # as the relay does: about a megabyte at a time, and nothing is kept
        assembler, frames_ = Assembler(), _with_relation_inside(stream)
        for first in range(0, len(frames_), _FRAMES_A_READ):
            list(assembler.feed(frames_[first : first + _FRAMES_A_READ]))

    def encode() -> None:
        for body in changes:
            envelope.encode(body)

    def decode_records() -> None:
        for record in routed:
            envelope.decode(record.value)

    figures = {
        "decode pgoutput frames": _best(decode_frames, rounds),
        "assemble, decoding included": _best(assemble, rounds),
        "route, encoding included": _best(_router_routes(transactions), rounds),
        "encode records": _best(encode, rounds),
        "decode records": _best(decode_records, rounds),
        "apply, 20 transactions a commit": min(_apply(routed, _TRANSACTIONS) for _ in range(rounds)),
        "apply, 1 transaction a commit": min(_apply(routed, 1) for _ in range(rounds)),
        "SQLite alone: the same rows as one upsert": min(_upsert(rows) for _ in range(rounds)),
    }
    per_row = {name: seconds / _ROWS * 1e6 for name, seconds in figures.items()}
    report.table(
        f"Microseconds of CPU a row (best of {rounds}, {sum(map(len, stream)) // _ROWS} bytes of stream a row, "
        f"{sum(len(record.value) for record in routed) // _ROWS} bytes of log a row)",
        ("step", "us"),
        [(name, f"{value:.2f}") for name, value in per_row.items()],
    )
    report.figures |= {f"{name} us/row": value for name, value in per_row.items()}


def _with_relation_inside(stream: list[bytes]) -> list[bytes]:
    """Postgres sends the Relation after the first Begin."""
    return [stream[1], stream[0], *stream[2:]]


def _router_routes(transactions: list[Transaction]) -> Callable[[], list[Routed]]:
    def route() -> list[Routed]:
        router = Router(Tenancy([Rule(table="public.*", column="tenant_id")]), PARTITIONS, 1, 1)
        return [record for transaction in transactions for record in router.route(transaction)]

    return route


def _best(action: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        started = time.thread_time()
        action()
        best = min(best, time.thread_time() - started)
    return best


def _apply(routed: list[Routed], records_a_commit: int) -> float:
    """Seconds to apply the records to new, open replicas; envelopes are decoded before."""
    catalog = _catalog()
    tenants: dict[bytes, list[Numbered]] = {}
    for number, record in enumerate(routed):
        body = envelope.decode(record.value)
        assert record.key is not None
        assert isinstance(body, Changes)
        tenants.setdefault(record.key, []).append(Numbered(record.partition, number, body))
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory, ExitStack() as opened:
        root = Path(directory)
        template = Template(root, catalog, shared=False)
        replicas = {}
        for key in tenants:
            tenant = key.decode()
            replicas[key] = Replica(root / f"{tenant}.db", tenant, catalog, template)
            opened.callback(replicas[key].close)
        started = time.thread_time()
        for first in range(0, _TRANSACTIONS, records_a_commit):
            for key, records in tenants.items():
                replicas[key].apply(records[first : first + records_a_commit], ready=True)
        return time.thread_time() - started


def _catalog() -> Catalog:
    relation = pgoutput.decode(frames.relation())
    assert isinstance(relation, Relation)
    catalog = Catalog({})
    described = Router(Tenancy([Rule(table="public.*", column="tenant_id")]), PARTITIONS, 1, 1).describe(relation, 1)
    schema = envelope.decode(described.value)
    assert isinstance(schema, envelope.Schema)
    catalog.note_schema(schema)
    catalog.note_facts(1, 1, [TableFacts(relation.oid, "public", "products", ("tenant_id", "id"), ())])
    return catalog


def _upsert(rows: list[pgoutput.Row]) -> float:
    """Seconds for SQLite itself, in memory, with one prepared statement and one commit."""
    conn = apsw.Connection(":memory:")
    conn.execute(
        "create table products (tenant_id text, id integer, name text, description text, price numeric, "
        "quantity integer, active integer, updated_at text, primary key (tenant_id, id)) without rowid"
    )
    started = time.thread_time()
    with conn:
        conn.executemany("insert or replace into products values (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return time.thread_time() - started
