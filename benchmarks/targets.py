"""What the project set out to reach, what was reached, and what peers reach: the last table.

The peers' numbers were measured beforehand, each with a rig of its own on the same kind of machine (2 cores of an AMD
EPYC, 24 GiB, everything on it), not in this run; docs/benchmarks.md says how. They are no part of a run's figures.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from benchmarks.report import Report


class Peer(NamedTuple):
    """A number of someone else's, in the target's unit."""

    name: str
    value: float


class Target(NamedTuple):
    """`figure` is a name in `Report.figures`."""

    figure: str
    what: str
    unit: str
    sense: Literal[">=", "<="]
    goal: float
    peer: Peer | None = None


DEBEZIUM_RATE: Final = Peer("Debezium to Kafka", 38_742)
DEBEZIUM_CPU: Final = Peer("Debezium to Kafka", 49.4)
DEBEZIUM_P50: Final = Peer("Debezium to Kafka", 2.1)
DEBEZIUM_P99: Final = Peer("Debezium to Kafka", 4.1)
ZERO_RATE: Final = Peer("zero-cache, one SQLite", 3_060)
ZERO_COPY: Final = Peer("zero-cache, one SQLite", 254_000)
ZERO_P50: Final = Peer("zero-cache, one SQLite, 200/s", 2.28)
ZERO_P99: Final = Peer("zero-cache, one SQLite, 200/s", 9.6)

TARGETS: Final = (
    Target("relay null / pg_recvlogical", "relay, null log, beside pg_recvlogical", "x", ">=", 1.0),
    Target("relay null us/row", "relay, null log: its CPU", "us/row", "<=", 6.0),
    Target("relay kafka us/row", "relay into Kafka: its CPU", "us/row", "<=", 8.0),
    Target("applier rows/s", "applier alone, one core, warm", "rows/s", ">=", 150_000),
    Target("end to end embedded rows/s", "end to end, embedded log", "rows/s", ">=", 80_000, ZERO_RATE),
    Target("end to end kafka rows/s", "end to end, Kafka", "rows/s", ">=", 70_000, DEBEZIUM_RATE),
    Target("end to end embedded CPU s/M", "end to end, embedded log: all CPU", "s/M rows", "<=", 20.0, DEBEZIUM_CPU),
    Target("end to end kafka CPU s/M", "end to end, Kafka: all CPU", "s/M rows", "<=", 20.0, DEBEZIUM_CPU),
    Target("latency embedded p50", "commit to visible, embedded log: p50", "ms", "<=", 2.5, ZERO_P50),
    Target("latency embedded p99", "commit to visible, embedded log: p99", "ms", "<=", 9.0, ZERO_P99),
    Target("latency kafka p50", "commit to visible, Kafka: p50", "ms", "<=", 5.0, DEBEZIUM_P50),
    Target("latency kafka p99", "commit to visible, Kafka: p99", "ms", "<=", 15.0, DEBEZIUM_P99),
    Target("relay RSS MiB", "relay: peak memory, over all logs", "MiB", "<=", 150),
    Target("applier RSS MiB", "applier, 1,000 warm tenants: peak memory", "MiB", "<=", 300),
    Target("large embedded relay MiB", "one large transaction, embedded log: relay", "MiB", "<=", 400),
    Target("large embedded applier MiB", "one large transaction, embedded log: applier", "MiB", "<=", 400),
    Target("large kafka relay MiB", "one large transaction, Kafka: relay", "MiB", "<=", 400),
    Target("large kafka applier MiB", "one large transaction, Kafka: applier", "MiB", "<=", 400),
    Target("first copy embedded rows/s", "first copy, embedded log", "rows/s", ">=", 120_000, ZERO_COPY),
    Target("first copy kafka rows/s", "first copy, Kafka", "rows/s", ">=", 120_000, ZERO_COPY),
    Target("verify rows/s", "verify: replicas compared with Postgres", "rows/s", ">=", 200_000),
    Target("resync s", "a tenant of 100,000 rows made anew", "s", "<=", 5.0),
    Target("resync embedded p99", "others' p99 beside a resync, embedded log", "x", "<=", 2.0),
    Target("resync kafka p99", "others' p99 beside a resync, Kafka", "x", "<=", 2.0),
    Target("travel restore s", "100,000 rows, 10,000 changes: to a random time, longest", "s", "<=", 3.0),
    Target("travel undo ms", "undo and resume", "ms", "<=", 50.0),
    Target("upkeep %", "snapshots and history, of the applier's CPU", "%", "<=", 10.0),
    Target("travel neighbours x", "a restore beside 100 busy neighbours, against 1", "x", "<=", 2.0),
    Target("recovery s", "a lost slot: 1,000 of 1,000,000 rows differ", "s", "<=", 30.0),
    Target("isolation embedded p99", "others' p99 beside a loud tenant, embedded log", "x", "<=", 2.0),
    Target("isolation kafka p99", "others' p99 beside a loud tenant, Kafka", "x", "<=", 2.0),
    Target("fleet RSS MiB", "many tenants in one applier: peak memory", "MiB", "<=", 1500),
    Target(
        "fleet rows/s, 20 a transaction", "many tenants: changes spread evenly, 20 a transaction", "rows/s", ">=", 25_000
    ),
    Target("fleet restart s", "many tenants: restart to the first applied record", "s", "<=", 10.0),
    Target("fleet cold read ms, p99", "many tenants: first read of a cold one, p99", "ms", "<=", 20.0),
    Target("edge in process p50 us", "edge, in process: warm point read, p50", "us", "<=", 30.0),
    Target("edge p50 ms", "edge, 1,000 reads/s beside 5,000 rows/s: p50", "ms", "<=", 1.0),
    Target("edge p99 ms", "edge, 1,000 reads/s beside 5,000 rows/s: p99", "ms", "<=", 5.0),
    Target("edge requests/s", "edge, two workers: peak", "requests/s", ">=", 8_000),
    Target("edge cold ms, p99", "edge, first read of a cold tenant: p99", "ms", "<=", 20.0),
    Target("edge neighbour p99 x", "edge, others' p99 beside a cartesian join", "x", "<=", 2.0),
    Target("fleet take-over s", "take-over of a killed applier's changed tenants", "s", "<=", 15.0),
)


def table(report: Report) -> None:
    """Print those targets that this run measured."""
    rows = []
    for target in TARGETS:
        reached = report.figures.get(target.figure)
        if reached is None:
            continue
        met = reached >= target.goal if target.sense == ">=" else reached <= target.goal
        rows.append(
            (
                target.what,
                f"{target.sense} {_number(target.goal)} {target.unit}",
                _number(reached),
                "yes" if met else "NO",
                *_beside(target, reached),
            )
        )
    if rows:
        report.table("Targets", ("", "target", "reached", "met", "peer", "peer's", "better by"), rows)


def _beside(target: Target, reached: float) -> tuple[str, str, str]:
    if target.peer is None:
        return "", "", ""
    ratio = reached / target.peer.value if target.sense == ">=" else target.peer.value / reached
    return target.peer.name, _number(target.peer.value), f"{ratio:.2f} x"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
