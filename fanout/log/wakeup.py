"""How a wait in another thread or process ends: bytes in a pipe, so that it can be waited for together with sockets.

    Signal   one process: a pipe that is readable after `set`
    Bell     a reader of the embedded log: a FIFO in the log's `wake/` directory that any process can ring
    Ringer   its writer: rings every bell there is

No wake-up is lost. A reader hangs up its bell before its first query, empties it before every query, and waits only
after a query that found nothing. A writer lists the directory after every commit. So a commit that a query did not see
is one whose listing, later still, finds the bell, and its byte is in the FIFO when the reader waits.
(Listing takes about 5 us. To list only when the directory's mtime moved would save 4 of them and miss a bell that was
hung up within one tick of the file system's clock.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
from pathlib import Path

from fanout.errors import LogError

_SUFFIX = ".fifo"


class Signal:
    """Readable from `set` until `clear`. `set` is safe from other threads and from signal handlers."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write_fd, False)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is readable
            os.write(self._write_fd, b"!")

    def clear(self) -> None:
        _drain(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_fd)


class Bell:
    """The reader's end. Ringing it is never lost, and ringing it often costs one wake-up."""

    def __init__(self, directory: Path) -> None:
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        unopened = directory / f"{name}.new"
        self._path = directory / f"{name}{_SUFFIX}"
        try:
            os.mkfifo(unopened)
            # read and write: it then never reports that its last writer has gone
            self._fd = os.open(unopened, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            # named last: whoever sees a bell that nobody has open knows that its reader is dead
            unopened.rename(self._path)
        except OSError as error:
            raise LogError(
                f"Cannot make the FIFO that wakes this reader: {error.strerror}",
                hint="The embedded log's readers write into its directory: give them the right to, and free space.",
                path=directory,
            ) from error
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def ring(self) -> None:
        """From this process: end a wait, or the next one. Safe from other threads and from signal handlers."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._fd, b"!")

    def silence(self) -> None:
        """Forget what was rung; a query must follow before the next wait."""
        _drain(self._fd)

    def wait(self, timeout_s: float | None) -> bool:
        """Until it is rung; False when the time is over first."""
        return bool(self._poll.poll(None if timeout_s is None else timeout_s * 1000))

    def close(self) -> None:
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


class Ringer:
    """The writer's end: rings the bells of all readers that live, and takes down those of the dead."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fds: dict[str, int] = {}

    def ring(self) -> None:
        """Wake every reader. Raises LogError when one cannot be woken."""
        names = {path.name for path in self._directory.iterdir() if path.suffix == _SUFFIX}
        for name in self._fds.keys() - names:
            os.close(self._fds.pop(name))
        for name in names:
            try:
                if name not in self._fds:
                    self._fds[name] = os.open(self._directory / name, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.write(self._fds[name], b"!")
            except BlockingIOError:
                pass  # full of bytes that its reader has not emptied yet: it is woken
            except OSError as error:
                self._take_down(name, error)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _take_down(self, name: str, error: OSError) -> None:
        if name in self._fds:
            os.close(self._fds.pop(name))
        if error.errno in (errno.EPIPE, errno.ENXIO):
            (self._directory / name).unlink(missing_ok=True)
        elif error.errno != errno.ENOENT:
            raise LogError(
                f"Cannot wake a reader of the log: {error.strerror}",
                hint="Run relay and appliers as the same user, or remove this file if no process of Headrace made it.",
                path=self._directory / name,
            ) from error


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while len(os.read(fd, 65536)) == 65536:
            pass
