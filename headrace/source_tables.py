"""Tables of the source as `headrace verify` compares them: digests by tenant, and rows. To be used within `AsOf.held`.

COPY, each line with its tenant before it --hash--> a Digest for each tenant, in bounded memory
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from appliers import compare
from appliers.compare import Digest, Texts
from appliers.place import SHARED_NAME
from cdc.as_of import AsOf
from cdc.publication import PublishedTable
from fanout.tenancy import ByColumn, Fixed, Shared
from fanout.tenant_rows import conditions, is_null

_KEPT_HASHES: Final = 1 << 18


class SourceTable(NamedTuple):
    """A table of the source, as far as it can be compared."""

    published: PublishedTable
    route: ByColumn | Fixed | Shared

    @property
    def names(self) -> list[str]:
        """Of its columns, in order."""
        return [column.name for column in self.published.relation.columns]


def digests_of(source: AsOf, table: SourceTable, names: Sequence[str], *, shared: bool) -> dict[str, Digest]:
    """Of each of these tenants that has rows, and if `shared` of the shared replica (SHARED_NAME). Raises SourceError."""
    route, found = table.route, dict[str, Digest]()
    if isinstance(route, Fixed):
        if route.tenant in names:
            found[route.tenant] = _digest(source.lines(table.published))
    elif isinstance(route, Shared):
        if shared:
            found[SHARED_NAME] = _digest(source.lines(table.published))
    else:
        if shared and route.on_null == "shared":
            found[SHARED_NAME] = _digest(source.lines(table.published, [is_null(table.published.relation, route)]))
        if names:
            found |= _by_tenant(source, table, route, names)
    return found


def _by_tenant(source: AsOf, table: SourceTable, route: ByColumn, names: Sequence[str]) -> dict[str, Digest]:
    wanted = conditions(table.published.relation, route, names)
    digests, hashes, kept = defaultdict[bytes, Digest](Digest), defaultdict[bytes, list[int]](list), 0
    for line in source.lines(table.published, wanted, behind=table.names[route.index]):
        tenant, _, row = line.partition(b"\t")
        hashes[tenant].append(hash(row[:-1]))
        kept += 1
        if kept == _KEPT_HASHES:
            _fold(hashes, digests)
            kept = 0
    _fold(hashes, digests)
    known = {name: Digest() for name in names}
    for escaped, digest in digests.items():
        name = compare.texts_of(escaped + b"\n")[0] or ""
        if name in known:
            known[name] = digest
    return known


def _fold(hashes: dict[bytes, list[int]], digests: dict[bytes, Digest]) -> None:
    for tenant, some in hashes.items():
        digest = digests[tenant]
        digest.rows += len(some)
        digest.sum += sum(some)
    hashes.clear()


def _digest(lines: Iterable[bytes]) -> Digest:
    made = Digest()
    made.add_all(line[:-1] for line in lines)
    return made


def rows_of(source: AsOf, table: SourceTable, tenant: str | None) -> Iterator[Texts]:
    """Of one tenant, or with None of the shared replica. Raises SourceError."""
    route = table.route
    if not isinstance(route, ByColumn):
        yield from map(compare.texts_of, source.lines(table.published))
    elif tenant is None:
        yield from map(compare.texts_of, source.lines(table.published, [is_null(table.published.relation, route)]))
    else:
        for line in source.lines(table.published, conditions(table.published.relation, route, [tenant])):
            row = compare.texts_of(line)
            if row[route.index] == tenant:
                yield row


def tenants_of(source: AsOf, table: SourceTable) -> list[str]:
    """Those that have rows. Raises SourceError."""
    if not isinstance(table.route, ByColumn):
        return []
    return source.tenants(table.published, table.names[table.route.index])
