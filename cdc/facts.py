"""What the catalog says of a table and Relation messages do not. Pure: the structs alone.

Read by `cdc.catalog` and by the event trigger (`cdc.ddl_trigger`); carried through the stream, and by Schema records.
"""

from __future__ import annotations

import msgspec


class Index(msgspec.Struct, array_like=True, frozen=True):
    """An index of the source on plain columns. `columns` are names in the index' order, `descending` their directions."""

    name: str
    unique: bool
    columns: tuple[str, ...]
    descending: tuple[bool, ...]


class ColumnFacts(msgspec.Struct, array_like=True, frozen=True):
    """One published column. `attnum` names it for as long as the table lives, whatever it is called; 0: not known.

    `missing`: what rows hold that are older than the column, as text; None for NULL. `form`: what its values' text depends
    on beside the type: an enum's labels in the order in which they came, or one string that tells a composite's attributes.
    """

    attnum: int
    name: str
    missing: str | None = None
    form: tuple[str, ...] = ()


class TableFacts(msgspec.Struct, array_like=True, frozen=True):
    """What Relation messages do not say. `primary_key` is empty without one, and for one that is deferrable.

    `columns`: those of the Relation, in its order. `attributes`: the greatest attnum that the table ever had; a column
    beyond it is new. `row_filter`: the publication's, as SQL, or empty.
    """

    oid: int
    schema: str
    table: str
    primary_key: tuple[str, ...]
    indexes: tuple[Index, ...]
    columns: tuple[ColumnFacts, ...] = ()
    attributes: int = 0
    row_filter: str = ""
