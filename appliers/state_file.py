"""`state.db` as a file: opened, recognised, and what SQLite says of it as our own errors. What is in it: `appliers.state`,
and `appliers.orders`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from appliers.errors import StateForeign, StorageUnavailable

APPLICATION_ID: Final = 0x48445253  # "HDRS"


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's and the file system's errors as StateForeign (not ours) and StorageUnavailable (may be better later)."""
    try:
        yield
    except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError) as error:
        raise StateForeign("state.db is damaged, or not Headrace's", path=str(path)) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise StateForeign("`replicas.path` is not a directory", path=str(path.parent)) from error
    except apsw.Error as error:
        raise StorageUnavailable(f"state.db cannot be used: {type(error).__name__}", path=str(path)) from error
    except OSError as error:
        raise StorageUnavailable(f"`replicas.path` cannot be used: {error.strerror}", path=str(path.parent)) from error


def open_state(path: Path) -> apsw.Connection:
    """For writing: our own file, or a new one; of another, not one byte is changed. Raises StateForeign, apsw.Error."""
    conn = apsw.Connection(str(path))
    conn.set_busy_timeout(10_000)
    conn.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    if conn.pragma("application_id") != APPLICATION_ID and conn.execute("select count(*) from sqlite_schema").get:
        conn.close()
        raise StateForeign("state.db is not Headrace's", path=str(path))
    conn.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    conn.pragma("journal_mode", "wal")
    conn.pragma("synchronous", "normal")
    return conn
