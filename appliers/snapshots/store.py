"""The object store: few verbs over `obstore`, for a folder by its path or `file://`, and `s3://`, `gs://`, `az://` by URL.

Contract:
 1. An object appears whole or not at all, under a key that is made of `/`-separated parts.
 2. `put_if_absent` answers True to one caller only, however many call at once, and what it stored is durable.
 3. What `put` stored is durable when `settle` has returned. In a bucket it is so at once. In a folder it is not: obstore's
    LocalStore writes beside and renames but never syncs, so `settle` is one `syncfs`, for any number of objects, and
    `put_if_absent` writes and syncs its file itself: a power cut must not leave a name without its content.
 4. `list` shows what was stored before it was called (S3, GCS, Azure and file systems promise that).

Errors are StoreUnavailable (worth trying again) or StoreMisconfigured (not). Their texts are ours: those of the library
quote URLs and answers of servers, so only the status and the system's own reason are taken from them.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import LocalStore, from_url

from appliers.barrier import sync_file_system
from appliers.errors import StorageUnavailable, StoreMisconfigured, StoreUnavailable

SCHEMES: Final = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_DELETED_AT_ONCE: Final = 1000
_PIECE: Final = 8 << 20

# a revoked partition is published within a deadline: better an error soon than success after minutes
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
_CLIENT: Final[Any] = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}
_CLIENT_OPTIONS: Final = frozenset({"allow_http", "allow_invalid_certificates", "proxy_url"})

_STATUS: Final = re.compile(r"status code: (\d{3})")
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
_STAGED: Final = re.compile(r"#\d+$")
"""Names of files in the making, of LocalStore and ours; LocalStore lists none of them."""
_LATER: Final = frozenset({408, 409, 425, 429})
_FOR_GOOD: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EOPNOTSUPP}
)
_NOTHING_THERE: Final = "There is no such bucket, container or folder"


class Stored(NamedTuple):
    """One object as listed. `modified_ms`: by the store's own clock."""

    key: str
    size: int
    modified_ms: int


class Store:
    """One root. Safe for use from several threads. Every method raises StoreUnavailable and StoreMisconfigured."""

    def __init__(self, backend: Any, folder: Path | None) -> None:
        """`open_store` makes one. `folder`: where the objects are files; None in a bucket."""
        self._backend = backend
        self._folder = folder
        self.stored_bytes = 0
        """By `put`; several threads count, so it may be a little too low."""

    def put(self, key: str, body: bytes | IO[bytes]) -> None:
        """Store an object, replacing one of the same key; durable with the next `settle`."""
        with _translated("write"):
            obstore.put(self._backend, key, body)
        self.stored_bytes += len(body) if isinstance(body, bytes) else body.seek(0, os.SEEK_END)

    def put_if_absent(self, key: str, body: bytes) -> bool:
        """Store an object unless there is one of that key; durable at once. False: there is one already.

        In a bucket that may be our own: the answer to a first attempt was lost, and the library asked again.
        """
        with _translated("write"):
            if self._folder is not None:
                return _create(self._folder, key, body)
            try:
                obstore.put(self._backend, key, body, mode="create")
            except exceptions.AlreadyExistsError:
                return False
        return True

    def settle(self) -> None:
        """What was put before is durable."""
        if self._folder is not None:
            try:
                sync_file_system(self._folder)
            except (StorageUnavailable, OSError) as error:
                raise StoreUnavailable("The folder of the snapshots cannot be synced") from error

    def get(self, key: str) -> bytes | None:
        """An object's content; None when there is no such object."""
        with _translated("read"):
            try:
                return bytes(obstore.get(self._backend, key).bytes())
            except FileNotFoundError:
                return None

    def part(self, key: str, start: int, length: int) -> bytes | None:
        """Some of an object's content, less at its end; None when there is no such object, or no such part of it."""
        with _translated("read"):
            try:
                return bytes(obstore.get_range(self._backend, key, start=start, length=length))
            except FileNotFoundError:
                return None

    def read(self, key: str) -> Iterator[bytes] | None:
        """The same in pieces of a few megabytes, for objects that need not fit into memory."""
        with _translated("read"):
            try:
                found = obstore.get(self._backend, key)
            except FileNotFoundError:
                return None
            return self._pieces(key, found)

    def _pieces(self, key: str, found: Any) -> Iterator[bytes]:
        size = found.meta["size"]
        with _translated("read"):
            if size <= _PIECE:
                yield bytes(found.bytes())
                return
            del found  # one request for all would have to end within the client's timeout
            for start in range(0, size, _PIECE):
                try:
                    yield bytes(obstore.get_range(self._backend, key, start=start, end=min(start + _PIECE, size)))
                except FileNotFoundError:
                    raise StoreUnavailable("An object went away while it was read") from None

    def list(self, prefix: str) -> list[Stored]:
        """The objects below a key, by key. `a/b` is above `a/b/c`, not above `a/bc`."""
        with _translated("list"):
            found = [
                Stored(meta["path"], meta["size"], int(meta["last_modified"].timestamp() * 1000))
                for page in obstore.list(self._backend, prefix)
                for meta in page
            ]
        return sorted(found)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove these; those that are not there are no error."""
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            some = list(keys[start : start + _DELETED_AT_ONCE])
            with _translated("delete"):
                try:
                    obstore.delete(self._backend, some)
                except FileNotFoundError:
                    for key in some:  # the library stopped at the one that is missing
                        with suppress(FileNotFoundError):
                            obstore.delete(self._backend, key)

    def sweep(self, prefix: str, before_ms: int) -> int:
        """Remove what writers that died have left half-written below a key since before then; answers how many.

        Buckets do not show such parts: a lifecycle rule of the bucket removes them.
        """
        swept = 0
        if self._folder is not None:
            with _translated("delete"):
                for path in (self._folder / prefix).rglob("*#*"):
                    with suppress(FileNotFoundError):
                        if _STAGED.search(path.name) and path.stat().st_mtime_ns // 1_000_000 < before_ms:
                            path.unlink()
                            swept += 1
        return swept


def open_store(url: str, options: Mapping[str, str] | None = None) -> Store:
    """The store of a URL or of a folder's path; a folder is made. A bucket is not asked yet.

    `options`: the provider's settings by obstore's names (`aws_region`), and of the HTTP client `allow_http`,
    `allow_invalid_certificates`, `proxy_url`; what is not given comes from the environment.
    """
    scheme = urlsplit(url).scheme if "://" in url else ""
    with _translated("open"):
        if scheme in ("", "file"):
            if not url or options:
                raise StoreMisconfigured("A folder of snapshots has a path and no options")
            folder = Path(unquote(urlsplit(url).path) if scheme else url).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            return Store(LocalStore(folder), folder)
        if scheme not in SCHEMES:
            raise StoreMisconfigured("No object store of this kind is known", scheme=scheme)
        return Store(_bucket(url, scheme, dict(options or {})), None)


def _bucket(url: str, scheme: str, options: dict[str, str]) -> Any:
    client = {**_CLIENT, **{name: options.pop(name) for name in _CLIENT_OPTIONS & options.keys()}}
    opener: Any = from_url
    try:
        return opener(url, config=options, client_options=client, retry_config=_RETRY)
    except BaseException as error:
        # the library panics on some names, which is no Exception
        if isinstance(error, exceptions.BaseError | ValueError) or type(error).__name__ == "PanicException":
            raise StoreMisconfigured("`snapshots.url` or `snapshots.options` mean nothing", scheme=scheme) from None
        raise


def _create(folder: Path, key: str, body: bytes) -> bool:
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.name}#{os.getpid()}{threading.get_native_id()}")
    try:
        with staged.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(staged, path)
        except FileExistsError:
            return False
    finally:
        staged.unlink(missing_ok=True)
    for directory in (path.parent, *path.parent.parents):
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if directory == folder:
            break
    return True


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Errors of the library and of the system -> ours."""
    try:
        yield
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise StoreMisconfigured("The object store refuses: no rights", operation=what) from None
    except FileNotFoundError:
        raise StoreMisconfigured(_NOTHING_THERE, operation=what) from None
    except OSError as error:
        raise _of_system(what, error.errno) from error
    except exceptions.BaseError as error:
        text = str(error)
        if found := _OS_ERROR.search(text):
            raise _of_system(what, int(found[1])) from None
        status = int(found[1]) if (found := _STATUS.search(text)) else None
        if status is not None and 300 <= status < 500 and status not in _LATER:
            message = _NOTHING_THERE if status == 404 else "The object store refuses"
            raise StoreMisconfigured(message, operation=what, status=status) from None
        raise StoreUnavailable("The object store fails", operation=what, status=status) from None


def _of_system(what: str, number: int | None) -> StoreUnavailable | StoreMisconfigured:
    kind = StoreMisconfigured if number in _FOR_GOOD else StoreUnavailable
    return kind(f"The object store: {os.strerror(number or 0)}", operation=what)
