"""What goes wrong in D1's words: HTTP status, code and message, as its clients and retry classifiers match on them.

Where D1 has no word for it, the code is 75xx of our own and the message says what it is: `docs/d1-compatibility.md` lists
them. A message holds nothing of a row's values; of a statement only what SQLite itself echoes.
"""

from __future__ import annotations

from typing import Final

import apsw

from appliers.errors import BookmarkInvalid, TenantUnknown
from cdc.errors import Disposition, HeadraceError
from edge.errors import BookmarkNotReached, NotReady
from edge.guard import READONLY, Guard

CPU: Final = "D1 DB exceeded its CPU time limit and was reset."
MEMORY: Final = "D1 DB's isolate exceeded its memory limit and was reset."
QUEUE_FULL: Final = "D1 DB is overloaded. Too many requests queued."
QUEUE_SLOW: Final = "D1 DB is overloaded. Requests queued for too long."
TRANSIENT: Final = "Cannot resolve D1 DB due to transient issue on remote node."
TRANSACTION: Final = (
    "To execute a transaction, please use the state.storage.transaction() or state.storage.transactionSync() APIs instead of"
    " the SQL BEGIN TRANSACTION or SAVEPOINT statements. The JavaScript API is safer because it will automatically roll back"
    " on exceptions, and because it interacts correctly with Durable Objects' automatic atomic write coalescing."
)
"""In D1's words, which is not said to whom it would help here; clients match on it."""
NOT_TEXT: Final = "text is not UTF-8: SQLITE_MISMATCH"
"""Not D1's word, which puts U+FFFD in its place."""
NO_STATEMENT: Final = "SQL code did not contain a statement."
WRONG_COUNT: Final = "Wrong number of parameter bindings for SQL query."
ONLY_LAST: Final = "When executing multiple SQL statements in a single call, only the last statement can have parameters."


class D1Error(Exception):
    """An answer that is none. `status`: of HTTP. Not a HeadraceError: it is the client's own, as D1 would say it."""

    def __init__(self, message: str, *, status: int = 400, code: int = 7500) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


def invalid(name: str, what: str) -> D1Error:
    """A property of the request that is not as it must be."""
    return D1Error(f"Invalid property: {name} => {what}", code=7400)


def not_found(database: str) -> D1Error:
    """No such database, or none that this token may see: the two are not told apart."""
    return D1Error(f"The database {database[:200]} could not be found", status=404, code=7404)


def of_sqlite(error: apsw.Error, guard: Guard) -> D1Error:
    """What SQLite, or apsw, says of a statement, and why the guard refused it if it did."""
    if guard.controlled:
        return D1Error(TRANSACTION)
    if guard.wrote or isinstance(error, apsw.ReadOnlyError):
        return D1Error(READONLY)
    if isinstance(error, apsw.InterruptError):
        return D1Error(CPU)
    if isinstance(error, apsw.NoMemError):
        return D1Error(MEMORY)
    if isinstance(error, apsw.BindingsError):
        return D1Error(WRONG_COUNT)
    extended = getattr(error, "extendedresult", 0)
    code = extended & 0xFF
    name = str(apsw.mapping_result_codes.get(code, "SQLITE_ERROR"))
    offset = getattr(error, "error_offset", -1)
    where = f" at offset {offset}" if offset >= 0 else ""
    more = f" (extended: {apsw.mapping_extended_result_codes.get(extended, extended)})" if extended != code else ""
    return D1Error(f"{error}{where}: {name}{more}")


def of_ours(error: HeadraceError, database: str) -> D1Error:
    """What the replica says, as an answer."""
    if isinstance(error, TenantUnknown):
        return not_found(database)
    if isinstance(error, NotReady):
        return D1Error(f"{TRANSIENT} {error.message}.", status=503, code=7511)
    if isinstance(error, BookmarkNotReached):
        return D1Error(f"{TRANSIENT} {error.message}.", status=503, code=7512)
    if isinstance(error, BookmarkInvalid):
        return D1Error(f"Invalid bookmark: {error.message}", code=7400)
    if error.disposition is Disposition.RETRY:
        return D1Error(f"{TRANSIENT} {error.message}.", status=503, code=7513)
    return D1Error(f"internal error; reference = {type(error).__name__}", status=500)
