"""`headrace run`: the relay and the appliers of one machine as child processes of one supervisor.

    headrace run -+- headrace edge, with `edge.enabled`
                  +- headrace relay
                  +- headrace applier --share 1/n, or --instance NAME-1 in a group
                  +- ...

Invariants:
 - a child that dies (by a signal, SIGKILL included, or with something worth trying again) is started again, after a
   pause that doubles from death to death and is short again once the child has lived for a minute;
 - a child that ends by an error of its own (exit code 1) would only meet it again: everything stops by that error;
 - the relay is stopped before the appliers, so that what it still drains has somebody to read it; whoever does not stop
   within the deadline is killed, which costs nothing but a replay;
 - no child outlives the supervisor (`headrace.lifeline`).

It holds no state and takes no part in replication: exactly-once is the stages' own, whatever happens here.
Nothing polls: the event loop waits for the exits of children and for signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from cdc.errors import HeadraceError
from headrace.config import PREFIX, MetricsConfig
from headrace.lifeline import Lifeline
from headrace.output import EXIT_RETRY

log = structlog.get_logger("headrace")

LISTEN: Final = f"{PREFIX}METRICS_LISTEN"
NO_METRICS: Final = MetricsConfig()
FIRST_PAUSE_S: Final = 0.5
HEALTHY_S: Final = 60.0
STOP_S: Final = 20.0
"""Above the ten seconds that a relay waits for its log when it drains."""


class StageFailed(HeadraceError):
    """The relay or an applier ended by an error that a restart does not cure."""

    default_hint = "Its own error stands above and says what to do; then run `headrace run` again. Nothing is lost."


class Child(NamedTuple):
    """One process to keep running: a name for people, and the arguments after `headrace`."""

    name: str
    arguments: tuple[str, ...]
    metrics: str = ""
    """Where it answers Prometheus, unless its stage has an address of its own."""


Lives = dict[str, tuple[bool, int]]
"""Child -> whether it lives, and how often it was started."""


class Backoff:
    """How long to wait before a child is started again."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._next_s = min(FIRST_PAUSE_S, longest_s)

    def pause_after(self, lived_s: float) -> float:
        """Seconds to wait after a life of this many seconds."""
        if lived_s >= HEALTHY_S:
            self._next_s = min(FIRST_PAUSE_S, self._longest_s)
        pause = self._next_s
        self._next_s = min(pause * 2, self._longest_s)
        return pause


def children(
    config: Path | None,
    appliers: int,
    log_level: str,
    instance: str | None = None,
    metrics: MetricsConfig = NO_METRICS,
) -> list[list[Child]]:
    """The processes of one machine, in the order in which they are stopped: the relay, then all appliers.

    `instance`: they are members of a group, called so with a number; None: each has a fixed share.
    """
    options = ("--log-level", log_level, *(("--config", str(config)) if config else ()))
    numbers = range(1, appliers + 1)
    option = "--share" if instance is None else "--instance"
    names = [f"{number}/{appliers}" if instance is None else f"{instance}-{number}" for number in numbers]
    return [
        [Child("relay", ("relay", *options), metrics.behind(1))],
        [
            Child(f"applier {name}", ("applier", option, name, *options), metrics.behind(2 + number))
            for number, name in zip(numbers, names, strict=True)
        ],
    ]


def edge_child(config: Path | None, log_level: str, metrics: MetricsConfig = NO_METRICS) -> Child:
    """The HTTP API, which is stopped before the others."""
    arguments = ("edge", "--log-level", log_level, *(("--config", str(config)) if config else ()))
    return Child("edge", arguments, metrics.behind(2))


def supervise(
    groups: Sequence[Sequence[Child]], *, longest_pause_s: float, stop_s: float = STOP_S, lives: Lives | None = None
) -> None:
    """Keep these running until SIGTERM, SIGINT or SIGHUP, then stop group after group.

    `stop_s`: seconds that each group has for it. `lives`: kept up to date. Raises StageFailed when a child ends by an error
    of its own.
    """
    asyncio.run(_Supervisor(longest_pause_s, stop_s, {} if lives is None else lives).run(groups))


class _Supervisor:
    def __init__(self, longest_pause_s: float, stop_s: float, lives: Lives) -> None:
        self._lives = lives
        self._longest_pause_s = longest_pause_s
        self._stop_s = stop_s
        self._lifeline = Lifeline()
        self._running: dict[Child, asyncio.subprocess.Process] = {}
        self._stopping = False

    async def run(self, groups: Sequence[Sequence[Child]]) -> None:
        signalled = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                asyncio.get_running_loop().add_signal_handler(number, signalled.set)
        keepers = [[asyncio.create_task(self._keep(child)) for child in group] for group in groups]
        waits = [asyncio.create_task(signalled.wait()), *(keeper for group in keepers for keeper in group)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        self._stopping = True
        for group, tasks in zip(groups, keepers, strict=True):
            await self._stop(group, tasks)
        self._lifeline.close()
        log.info("stopped")
        failures = [keeper.exception() for group in keepers for keeper in group if not keeper.cancelled()]
        for failure in filter(None, failures):
            raise failure

    async def _keep(self, child: Child) -> None:
        """Run the child, again and again. Returns when it ended because all are stopping."""
        backoff = Backoff(self._longest_pause_s)
        while True:
            started = time.monotonic()
            code = await self._live(child)
            if self._stopping:
                return
            if code > 0 and code != EXIT_RETRY:
                raise StageFailed("A stage ended by an error of its own, so all were stopped", stage=child.name)
            pause = backoff.pause_after(time.monotonic() - started)
            log.warning("restarting", child=child.name, ended=_describe(code), pause_s=round(pause, 1))
            await asyncio.sleep(pause)

    async def _live(self, child: Child) -> int:
        """One life of a child; answers its exit code, negative for a signal."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "headrace",
            *child.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[self._lifeline.fd],
            env={**self._lifeline.environment(), **({LISTEN: child.metrics} if child.metrics else {})},
            process_group=0,  # a terminal's Ctrl-C reaches the supervisor alone, which keeps the order
        )
        self._running[child] = process
        starts = self._lives.get(child.name, (False, 0))[1] + 1
        self._lives[child.name] = (True, starts)
        log.info("started", child=child.name, pid=process.pid)
        try:
            return await process.wait()
        finally:
            del self._running[child]
            self._lives[child.name] = (False, starts)

    async def _stop(self, group: Sequence[Child], keepers: Sequence[asyncio.Task[None]]) -> None:
        for child, keeper in zip(group, keepers, strict=True):
            if child in self._running:
                self._signal(child, signal.SIGTERM)
            else:
                keeper.cancel()
        _, late = await asyncio.wait(keepers, timeout=self._stop_s)
        for child, keeper in zip(group, keepers, strict=True):
            if keeper in late:
                log.warning("killing", child=child.name, after_s=self._stop_s)
                self._signal(child, signal.SIGKILL)
        await asyncio.wait(keepers)

    def _signal(self, child: Child, number: signal.Signals) -> None:
        with contextlib.suppress(KeyError, ProcessLookupError):  # it has just ended by itself
            self._running[child].send_signal(number)


def _describe(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
