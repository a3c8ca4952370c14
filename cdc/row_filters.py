"""Row filters of a publication, and the note in its comment of what they were made from.

Postgres prints a condition in its own words, so a filter cannot be compared with the text that was given. Whoever sets
filters leaves a digest of both, table by table; a filter that anybody has changed since does not fit its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from cdc.connection import translated
from cdc.publication import SETTINGS

_NOTE: Final = "Headrace row filters: "


class RowFilter(NamedTuple):
    """A published table's. `printed`: by Postgres; `noted`: what `note_filters` left of it, or empty."""

    printed: str
    noted: str

    def is_made_from(self, condition: str) -> bool:
        """Whether this condition, and nobody since, has made it. Postgres prints a condition in its own words, so the note
        is of both."""
        return self.noted == hashlib.md5(f"{condition}/{self.printed}".encode()).hexdigest()  # noqa: S324 - no secret


_FILTERS: Final = """
select p.schemaname::text, p.tablename::text, coalesce(p.rowfilter, ''), c.oid::text,
       obj_description(b.oid, 'pg_publication')
from pg_publication_tables p
join pg_publication b on b.pubname = p.pubname
join pg_namespace n on n.nspname = p.schemaname join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
where p.pubname = %s
"""


def read_filters(conn: psycopg.Connection[Any], publication: str) -> dict[tuple[str, str], RowFilter]:
    """(schema, table) -> its row filter. Raises SourceError."""
    with translated(), conn.transaction():
        conn.execute(SETTINGS)
        rows = conn.execute(_FILTERS, (publication,)).fetchall()
    found = {}
    for schema, table, printed, oid, comment in rows:
        noted = {}
        if comment and comment.startswith(_NOTE):
            with suppress(msgspec.DecodeError, msgspec.ValidationError):
                noted = msgspec.json.decode(comment.removeprefix(_NOTE), type=dict[str, str])
        found[schema, table] = RowFilter(printed, noted.get(oid, ""))
    return found


def note_filters(publication: str, conditions: Mapping[tuple[str, str], str]) -> sql.Composed:
    """The statement that notes, in the publication's comment, from which conditions its row filters were made."""
    wanted = msgspec.json.encode([[*table, condition] for table, condition in sorted(conditions.items())]).decode()
    body = sql.SQL("""
declare noted text;
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);
  select json_object_agg(c.oid, md5(coalesce(w.value ->> 2, '') || '/' || coalesce(p.rowfilter, ''))) into noted
  from pg_publication_tables p
  join pg_namespace n on n.nspname = p.schemaname join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
  left join json_array_elements({wanted}) w on w.value ->> 0 = p.schemaname and w.value ->> 1 = p.tablename
  where p.pubname = {name};
  execute format('comment on publication %I is %L', {name}, {note} || noted);
end
""").format(wanted=sql.Literal(wanted), name=sql.Literal(publication), note=sql.Literal(_NOTE))
    return sql.SQL("do {}").format(sql.Literal(body.as_string()))
