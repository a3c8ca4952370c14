"""Random histories of some tenants, as a log would hold them: transactions in one record or in chunks, truncates for
everybody, rows that lack a value until a refill brings it, and relays that die in the midst and are followed by others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeAlias

from cdc.pgoutput import UNCHANGED, Row
from cdc.relation import ReplicaIdentity
from fanout.envelope import Changes, Close, CopyBegin, CopyEnd, Envelope, Op, Progress, Run, Truncate, digest_of
from tests.appliers.records import relation, run, schema

ITEMS = relation()
NOTES = relation("notes", key=(), identity=ReplicaIdentity.FULL, oid=16500)
KEYS = 12

Sent: TypeAlias = tuple[str | None, Envelope]
"""A tenant, or nobody in particular, and a record."""
Part: TypeAlias = dict[str, list[Run]]
"""Tenant -> its rows in one part of a transaction."""


class Tenant:
    """The rows that the source has of one. `lacking`: keys of items whose column b the stream has not brought."""

    def __init__(self) -> None:
        self.items: dict[str, Row] = {}
        self.notes: list[Row] = []
        self.lacking: set[str] = set()


class History:
    """Made by a seed; `records` is the log, `tenants` what must come of it."""

    def __init__(self, seed: int) -> None:
        self._pick = random.Random(seed)
        self.tenants = {name: Tenant() for name in "abcd"[: self._pick.randint(1, 4)]}
        self._value = 0
        self._relay = 1
        self._sent: list[Callable[[int], list[Sent]]] = []
        self.records: list[Sent] = [
            (None, CopyBegin(1, 1, "system", 1, "slot")),
            (None, schema(ITEMS)),
            (None, schema(NOTES)),
            (None, CopyEnd(1, 1, 1, 0)),
            self._progress(2),
        ]
        lsn = 0
        for _ in range(self._pick.randint(4, 30)):
            lsn += 10
            [make] = self._pick.choices([self._whole, self._chunks, self._truncate, self._refill], [45, 20, 15, 20])
            self._send(make(lsn))
            self.records.append(self._progress(lsn + 5))
        self._send(self._refill(lsn + 10, everything=True))
        self.records.append(self._progress(lsn + 15))

    def _progress(self, lsn: int) -> Sent:
        return None, Progress(1, lsn, self._relay, 1, "system", 1, "slot")

    def _send(self, made: Callable[[int], list[Sent]]) -> None:
        """`made`: a relay's number -> the records of one transaction."""
        if self._pick.random() < 0.2:
            begun = made(self._relay)
            self.records += begun[: self._pick.randint(0, len(begun))]  # the relay dies here
            self._relay += 1
            for again in self._sent[len(self._sent) - self._pick.randint(0, min(4, len(self._sent))) :]:
                self.records += again(self._relay)
        self.records += made(self._relay)
        self._sent.append(made)

    # --- transactions ---

    def _whole(self, lsn: int) -> Callable[[int], list[Sent]]:
        part = self._part(0.6)
        return lambda relay: [(name, _changes(lsn, 0, True, relay, runs)) for name, runs in part.items()]

    def _chunks(self, lsn: int) -> Callable[[int], list[Sent]]:
        parts = [self._part(0.6) for _ in range(self._pick.randint(2, 3))]

        def made(relay: int) -> list[Sent]:
            numbers: dict[str, int] = {}
            records: list[Sent] = []
            for part in parts:
                last = part is parts[-1]
                records += _numbered(lsn, part, numbers, 0, last, relay)
            ended = {name: number for name, number in numbers.items() if name not in parts[-1]}
            return [*records, *((name, _changes(lsn, number, True, relay, [])) for name, number in ended.items())]

        return made

    def _truncate(self, lsn: int) -> Callable[[int], list[Sent]]:
        before = self._part(0.4)
        for tenant in self.tenants.values():
            tenant.items.clear()
            tenant.lacking.clear()
        after = self._part(0.4)

        def made(relay: int) -> list[Sent]:
            numbers: dict[str, int] = {}
            records = _numbered(lsn, before, numbers, 0, False, relay)
            records.append((None, Truncate(1, lsn, 1, relay, lsn, 1, [digest_of(ITEMS, "items")])))
            records += _numbered(lsn, after, numbers, 1, False, relay)
            return [*records, (None, Close(1, lsn, relay, 1))]

        return made

    def _refill(self, lsn: int, *, everything: bool = False) -> Callable[[int], list[Sent]]:
        part: Part = {}
        for name, tenant in self.tenants.items():
            brought = [key for key in sorted(tenant.lacking) if everything or self._pick.random() < 0.5]
            if brought:
                tenant.lacking.difference_update(brought)
                part[name] = [run(Op.UPSERT, ITEMS, *(list(tenant.items[key]) for key in brought))]
        return lambda relay: [(name, _changes(lsn, 0, True, relay, runs)) for name, runs in part.items()]

    # --- rows ---

    def _part(self, share: float) -> Part:
        chosen = {name: tenant for name, tenant in self.tenants.items() if self._pick.random() < share}
        made = {name: list(self._runs(tenant)) for name, tenant in chosen.items()}
        return {name: runs for name, runs in made.items() if runs}

    def _new(self) -> str:
        self._value += 1
        return f"v{self._value}"

    def _runs(self, tenant: Tenant) -> Iterator[Run]:
        for _ in range(self._pick.randint(1, 3)):
            kind = self._pick.choice(["insert", "enter", "update", "delete", "rekey", "note", "forget"])
            key, free = self._key(tenant), str(self._pick.randrange(KEYS))
            if kind == "note":
                tenant.notes.append(["1", self._new(), None])
                yield run(Op.UPSERT, NOTES, list(tenant.notes[-1]))
            elif kind == "forget" and tenant.notes:
                yield run(Op.DELETE, NOTES, tenant.notes.pop(self._pick.randrange(len(tenant.notes))))
            elif kind in ("insert", "enter") and free not in tenant.items:
                row: Row = [free, self._new(), self._new()]
                tenant.items[free] = row
                if kind == "enter":
                    tenant.lacking.add(free)
                    yield run(Op.INCOMPLETE, ITEMS, [free, row[1], UNCHANGED])
                else:
                    yield run(Op.UPSERT, ITEMS, list(row))
            elif key is not None and kind == "update":
                tenant.items[key][1] = value = self._new()
                yield run(Op.PATCH, ITEMS, [key, value, UNCHANGED])
            elif key is not None and kind == "delete":
                del tenant.items[key]
                tenant.lacking.discard(key)
                yield run(Op.DELETE, ITEMS, [key, None, None])
            elif key is not None and kind == "rekey" and free not in tenant.items:
                row = tenant.items.pop(key)
                tenant.items[free] = [free, self._new(), row[2]]
                if key in tenant.lacking:
                    tenant.lacking.remove(key)
                    tenant.lacking.add(free)
                yield run(Op.REKEY, ITEMS, [key, None, None], [free, tenant.items[free][1], UNCHANGED])

    def _key(self, tenant: Tenant) -> str | None:
        return self._pick.choice(sorted(tenant.items)) if tenant.items else None


def _numbered(lsn: int, part: Part, numbers: dict[str, int], first: int, last: bool, relay: int) -> list[Sent]:
    """The chunks of a part; `numbers` of the next ones are moved on."""
    records: list[Sent] = []
    for name, runs in part.items():
        number = max(numbers.get(name, 0), first)
        numbers[name] = number + 1
        records.append((name, _changes(lsn, number, last, relay, runs)))
    return records


def _changes(lsn: int, chunk: int, last: bool, relay: int, runs: list[Run]) -> Changes:
    return Changes(1, lsn, chunk, last, relay, lsn, 1, runs)
