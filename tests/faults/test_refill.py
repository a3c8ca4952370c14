"""Rows are read again while the table changes, and while relays die: the row of the crash table for refills."""

from __future__ import annotations

import json
import random

import pytest

from fanout.envelope import RefillEnd
from fanout.log import open_reader
from fanout.resume import read_tail
from tests.end_to_end.oracle import TornWatcher, assert_replicas_equal, wait_until
from tests.faults.parcels import BROKEN, TABLE, Parcels, prepare
from tests.faults.pipeline import PARTITIONS, Pipeline

pytestmark = pytest.mark.faults


def ask(pipeline: Pipeline, table: str, *, replace: bool) -> None:
    """As an operator does."""
    row = pipeline.conn.execute("select %s::regclass::oid::bigint", [table]).fetchone()
    assert row is not None
    content = json.dumps({"oid": row[0], "replace": replace})
    pipeline.conn.execute("select pg_logical_emit_message(true, 'headrace.resync', %s)", [content])


def refilled(pipeline: Pipeline) -> bool:
    """Whether nothing is left to be read again, as the log tells."""
    with open_reader(pipeline.log) as reader:
        return not read_tail(reader).refills


def test_relay_dies_in_a_refill(pipeline: Pipeline, seed: int) -> None:
    """Pieces were read, their messages are in the stream, their records are in the log or in part: the next relay goes on
    behind the last that the log tells of, and every replica shows whole transactions all the while (T16, T19, T24)."""
    prepare(pipeline.conn)
    pick = random.Random(seed)
    applier = pipeline.applier()
    points = ("relay.refill-read", "relay.refill-committed", "relay.refill-ordered", "relay.refill-behind")
    with TornWatcher(pipeline.root, BROKEN, {}), pipeline.traffic(seed, pause_s=0.05):
        relay = pipeline.relay()
        pipeline.wait_copied(relay, applier)
        with Parcels(pipeline.database.dsn, seed):
            for number, point in enumerate(points):
                relay.kill()
                relay = pipeline.relay(failpoint=f"{point}:{1 if point == 'relay.refill-behind' else pick.randrange(1, 9)}")
                ask(pipeline, "stamps", replace=True)
                ask(pipeline, "parcels", replace=bool(number % 2))
                relay.wait_killed()
            relay = pipeline.relay()
            ask(pipeline, "parcels", replace=True)
            pipeline.wait_applied(relay, applier)
            wait_until(lambda: refilled(pipeline), "nothing is left to be read again")
    pipeline.assert_equal(relay, applier)
    wait_until(lambda: refilled(pipeline), "nothing is left to be read again")
    pipeline.assert_equal(relay, applier)
    assert_replicas_equal(pipeline.conn, pipeline.root, PARTITIONS, [TABLE])
    assert any(isinstance(body, RefillEnd) for _, body in pipeline.records())
    relay.stop()
    applier.stop()


def test_a_request_that_is_none_is_passed_over(pipeline: Pipeline) -> None:
    """Somebody's slip in SQL stops no relay, now or at its next start; the status says what was wrong with it. An oid may be
    a string, as `json_build_object` writes it."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    for content in ("no json", '{"oid": "x"}', "[]", '{"oid": 0}', '{"tenant": ""}', '{"tenant": "a", "keys": [["1"]]}'):
        pipeline.conn.execute("select pg_logical_emit_message(true, 'headrace.resync', %s)", [content])
    wait_until(lambda: "is not a request" in pipeline.status("relay").get("refused", ""), "it is told")
    row = pipeline.conn.execute(
        "select json_build_object('oid', 'statics'::regclass::oid, 'replace', true)::text"
    ).fetchone()
    assert row is not None
    assert '"oid" : "' in row[0]
    pipeline.conn.execute("select pg_logical_emit_message(true, 'headrace.resync', %s)", [row[0]])
    wait_until(lambda: any(isinstance(body, RefillEnd) for _, body in pipeline.records()), "the table is read again")
    pipeline.assert_equal(relay, applier)
    relay.stop()
    applier.stop()
