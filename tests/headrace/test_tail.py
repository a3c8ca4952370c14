"""`headrace tail` on both logs; and one record of every kind as a line and as a document."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cdc.facts import TableFacts
from cdc.lsn import parse_lsn
from cdc.pgoutput import UNCHANGED
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout import envelope
from fanout.envelope import (
    FIRST_COPY_CHUNK,
    Catalog,
    Changes,
    Close,
    CopyBegin,
    CopyEnd,
    Envelope,
    Op,
    Progress,
    Run,
    Schema,
    Truncate,
    digest_of,
)
from fanout.log import LogConfig, Record, open_reader, open_writer, partition_of
from headrace.places import AtLsn, AtTime, Offset, Place
from headrace.records import Shown, document, line
from headrace.tail import Filter, Tail
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS
from tests.headrace.conftest import Operator

PEOPLE = Relation(
    1,
    "public",
    "people",
    ReplicaIdentity.DEFAULT,
    (Column("id", 23, "", -1, True), Column("name", 25, "", -1, False), Column("photo", 17, "", -1, False)),
)
DIGEST = digest_of(PEOPLE, "people")
SCHEMAS = {DIGEST: Schema(1, 0x10, DIGEST, PEOPLE, "people", True, False, "")}
SECRET = "Ada Lovelace"  # noqa: S105 - a row's value, which no line may show
TIME_MS = 1_769_860_800_123
RUNS = [
    Run(Op.UPSERT, DIGEST, False, [["1", SECRET, None], ["2", SECRET, None]]),
    Run(Op.PATCH, DIGEST, False, [["1", SECRET, UNCHANGED]]),
    Run(Op.REKEY, DIGEST, False, [["2", None, None], ["3", SECRET, UNCHANGED]]),
    Run(Op.DELETE, DIGEST, False, [["3", None, None]]),
]
CHANGES = Changes(1, 0x1A2B, 0, True, 1, 77, 1_769_860_800_000_000, RUNS)


def shown(body: Envelope, tenant: str | None = None) -> Shown:
    return Shown(Record(3, 41, None if tenant is None else tenant.encode(), envelope.encode(body), TIME_MS), body)


# --- the command, over the relay's own records ---


def test_tail_shows_what_was_committed_and_no_values(
    new_pipeline: Callable[[LogConfig], Pipeline], log: LogConfig, operator: Operator
) -> None:
    """The last records in order, filtered by tenant, partition, offset and time, without values unless --rows asks."""
    pipeline = new_pipeline(log)
    pipeline.wait_copied(pipeline.relay(), pipeline.applier())  # appliers remember the tables' names
    wait_until(pipeline.walsender_pid, "the relay streams")
    tenant = FOUNDERS[1]
    note = "a value that no line may show"
    before_ms = time.time_ns() // 1_000_000
    pipeline.conn.execute("update accounts set profile = %s where tenant = %s and id = 1", [note, tenant])
    pipeline.conn.execute("delete from statics where tenant = %s and n = 1", [tenant])
    pipeline.conn.execute("update rates set tag = 1")
    written = pipeline.current_lsn()
    wait_until(lambda: pipeline.confirmed_lsn() >= written, "the log holds them")

    text = operator.text("tail", "--tenant", tenant, "--limit", "2").splitlines()
    assert ["accounts: 1 " in text[0], "statics: 1 delete" in text[1]] == [True, True]
    assert tenant in text[0]

    everything = operator.text("tail", "--from", "beginning")
    assert note not in everything
    assert "copy-begin" in everything
    assert everything.count("rates: 20 upsert") == 2  # the copy and the update, once each and not once a partition
    assert "progress" not in everything
    assert "progress" in operator.text("tail", "--from", "beginning", "--progress")

    last = operator.lines("tail", "-n", "3")
    assert [record["rows"] for record in last if record["kind"] == "changes"][-1] == {"rates": {"upsert": 20}}
    records = operator.lines("tail", "--tenant", tenant, "--from", "beginning")
    copied = [record for record in records if record["kind"] == "copy"]
    assert sum(counts["upsert"] for record in copied for counts in record["rows"].values()) == 45
    assert all(record["tenant"] == tenant and "runs" not in record for record in records)
    delete = records[-1]
    assert delete["partition"] == partition_of(tenant.encode(), PARTITIONS)

    assert operator.lines("tail", "--tenant", tenant, "--from", str(delete["offset"])) == [delete]
    in_partition = operator.lines("tail", "--partition", str(delete["partition"]), "--from", str(delete["offset"]))
    assert in_partition[0] == delete
    since = operator.lines("tail", "--tenant", tenant, "--since", _iso(before_ms))
    assert since == records[-2:]
    assert operator.lines("tail", "--tenant", tenant, "--since", "1h", "-n", "1") == records[:1]

    lsn = f"1:{records[-2]['lsn']}"
    assert operator.lines("tail", "--tenant", tenant, "--from", lsn, "--until", lsn) == records[-2:-1]
    assert operator.lines("tail", "--tenant", tenant, "--from", "1h", "--table", "statics", "--kind", "changes") == [delete]
    with open_reader(log) as reader:
        tail = Tail(reader, Filter(tenant=tenant, kinds=frozenset({"changes", "copy"})))
        offsets = [record["offset"] for record in records]
        ranges: list[tuple[Place, Place, list[int]]] = [
            (AtLsn(parse_lsn(delete["lsn"])), "end", offsets[-1:]),
            ("beginning", Offset(records[-2]["offset"]), offsets[:-1]),
            ("beginning", AtTime(before_ms * 1000), offsets[:-2]),
        ]
        for start, until, found in ranges:
            assert [s.record.offset for s in tail.between(tail.starts(start), tail.ends(until))] == found

    [update, _] = operator.lines("tail", "--tenant", tenant, "--rows", "-n", "2")
    [run] = update["runs"]
    assert (run["table"], run["rows"][0]["profile"], run["rows"][0]["tenant"]) == ("accounts", note, tenant)


def test_follow_shows_what_comes_until_ctrl_c(
    new_pipeline: Callable[[LogConfig], Pipeline], log: LogConfig, operator: Operator
) -> None:
    """--follow shows the last records and then each new one when it is committed; Ctrl-C ends it well."""
    pipeline = new_pipeline(log)
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    tail = operator.start("tail", "--follow", "--tenant", FOUNDERS[0], "--limit", "1")
    assert tail.stdout is not None
    assert "copy" in tail.stdout.readline()
    for row in (1, 2):
        pipeline.conn.execute("delete from statics where tenant = %s and n = %s", [FOUNDERS[0], row])
        assert "statics: 1 delete" in tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    rest, said = tail.communicate(timeout=30)
    assert (tail.returncode, rest) == (0, ""), said


def test_follow_from_the_end_shows_only_what_is_new(pipeline: Pipeline, operator: Operator) -> None:
    """--from end begins behind the last record, and --limit ends it by itself."""
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    tail = operator.start("tail", "--follow", "--from", "end", "--tenant", FOUNDERS[0], "--limit", "2", "--json")

    def ended() -> bool:
        pipeline.conn.execute("update accounts set open = not open where tenant = %s and id = 1", [FOUNDERS[0]])
        return tail.poll() is not None

    wait_until(ended, "it has seen two of many updates")
    out, said = tail.communicate(timeout=30)
    assert tail.returncode == 0, said
    assert out.count('"kind":"changes"') == len(out.splitlines()) == 2


def test_what_cannot_be_shown_is_refused(pipeline: Pipeline, operator: Operator) -> None:
    """An offset without a partition, one that is not there, a partition that is not there: each an error with its fix."""
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    assert "--partition" in operator.ask("tail", "--from", "3", code=1).stderr
    assert "Its offsets are from 0 to" in operator.ask("tail", "--from", "99999", "--partition", "1", code=1).stderr
    assert "PartitionUnknown" in operator.ask("tail", "--partition", "64", code=1).stderr
    assert "copy-end" in operator.ask("tail", "--kind", "nothing", code=2).stderr
    assert "--until" in operator.ask("tail", "--follow", "--until", "3", code=2).stderr


def test_a_reader_that_closes_early_ends_it_quietly(pipeline: Pipeline, operator: Operator) -> None:
    """`headrace tail | head -1` leaves no traceback."""
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    tail = operator.start("tail", "--from", "beginning", "--progress", "--follow")
    assert tail.stdout is not None
    tail.stdout.readline()
    tail.stdout.close()
    assert tail.stderr is not None
    said = tail.stderr.read()
    tail.wait(30)
    assert "Traceback" not in said


# --- the last records, and how far back they are looked for ---


def test_the_last_records_of_a_quiet_tenant_are_found_behind_others(tmp_path: Path) -> None:
    """Few matches are looked for further back, step by step; a search that gives up says that it has not seen all."""
    config = LogConfig(path=str(tmp_path / "log"), partitions=1)
    value = envelope.encode(CHANGES)
    with open_writer(config) as writer:
        for tenant in [b"old", *[b"loud"] * 11_000, b"quiet", *[b"loud"] * 500]:
            assert writer.append(0, tenant, value)
        writer.commit()
    with open_reader(config) as reader:
        tail = Tail(reader, Filter(tenant="quiet"))
        found, _ = tail.last(1)
        assert [s.record.key for s in found] == [b"quiet"]
        many = Tail(reader, Filter(tenant="loud"))
        assert len(many.last(20)[0]) == 20
        lost = Tail(reader, Filter(tenant="old"))
        assert lost.last(1)[0] == []
        assert not lost.searched_all


# --- one record ---


@pytest.mark.parametrize(
    ("body", "tenant", "words"),
    [
        (CHANGES, "acme", ["3/41", "acme", "changes", "1:0/1A2B", "people: 2 upsert, 1 patch, 1 rekey, 1 delete"]),
        (Changes(1, 1, 2, False, 1, 7, 1, RUNS[:1]), "acme", ["1:0/1:2", "people: 2 upsert ..."]),
        (Changes(1, 1, FIRST_COPY_CHUNK, True, 1, 0, 0, RUNS[:1]), "acme", ["copy", "people: 2 upsert"]),
        (Changes(1, 1, 0, True, 1, 7, 1, [Run(Op.DELETE, 255, False, [["1"]])]), "acme", ["#ff: 1 delete"]),
        (SCHEMAS[DIGEST], None, ["*/41", "-", "schema", "people: 3 columns"]),
        (Catalog(1, 1, [TableFacts(1, "public", "people", ("id",), ())]), None, ["catalog", "1 tables"]),
        (Truncate(1, 1, 1, 1, 7, 1, [DIGEST]), None, ["truncate", "people"]),
        (Close(1, 1, 1, 1), None, ["close"]),
        (Progress(2, 0x30, 1, 1, "sys", 1, "slot"), None, ["progress", "2:0/30"]),
        (CopyBegin(2, 1, "sys", 1, "slot"), None, ["copy-begin", "2:0/0"]),
        (CopyEnd(2, 1, 1, 1002), None, ["copy-end", "1002 rows"]),
    ],
)
def test_a_line_says_what_a_record_is(body: Envelope, tenant: str | None, words: list[str]) -> None:
    """Place, time, tenant, kind, position, size and rows by operation; never a value."""
    text = line(shown(body, tenant), SCHEMAS)
    assert text.startswith("2026-01-31T12:00:00.123Z  ")
    assert all(word in text for word in words)
    assert f"{len(envelope.encode(body))} B" in text
    assert SECRET not in text


def test_a_line_is_one_line_whatever_the_tenant_is_called() -> None:
    """A tenant id with a line break or an escape sequence is quoted."""
    text = line(shown(CHANGES, "a\nb\x1b[31m"), SCHEMAS)
    assert "\n" not in text
    assert "\x1b" not in text


def test_a_document_counts_rows_and_hides_them() -> None:
    """Without `rows` the document has the counts by table and operation; rows are not in it."""
    content = document(shown(CHANGES, "acme"), SCHEMAS, rows=False)
    assert content == {
        "partition": 3,
        "offset": 41,
        "time": "2026-01-31T12:00:00.123Z",
        "tenant": "acme",
        "kind": "changes",
        "generation": 1,
        "lsn": "0/1A2B",
        "chunk": 0,
        "bytes": len(envelope.encode(CHANGES)),
        "last": True,
        "xid": 77,
        "commit_time": "2026-01-31T12:00:00.000Z",
        "rows": {"people": {"upsert": 2, "patch": 1, "rekey": 1, "delete": 1}},
    }


def test_rows_are_named_by_column_and_hold_only_what_was_sent() -> None:
    """NULL is null, an unchanged value is left out, and an old row known by its key is its key."""
    content = document(shown(CHANGES, "acme"), SCHEMAS, rows=True)
    assert [run["rows"] for run in content["runs"]] == [
        [{"id": "1", "name": SECRET, "photo": None}, {"id": "2", "name": SECRET, "photo": None}],
        [{"id": "1", "name": SECRET}],
        [{"old": {"id": "2"}, "new": {"id": "3", "name": SECRET}}],
        [{"id": "3"}],
    ]


def test_rows_of_an_unknown_table_are_lists() -> None:
    """Rows whose Schema record was never seen are shown as they are, under their digest."""
    body = Changes(1, 1, 0, True, 1, 7, 1, [Run(Op.PATCH, 255, False, [["1", UNCHANGED]])])
    content = document(shown(body, "acme"), SCHEMAS, rows=True)
    assert content["runs"] == [{"table": "#ff", "op": "patch", "rows": [["1", {"unchanged": True}]]}]


def _iso(time_ms: int) -> str:
    return datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC).isoformat()
