"""`headrace resync`: replicas made anew from Postgres, each in a new file that takes the old one's place at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from appliers.errors import ReplicaReplaced, TenantError, TenantUnknown
from appliers.reader import Directory
from appliers.replica import resynced_by, tenant_of
from cdc.lsn import Lsn, format_lsn, parse_lsn
from cdc.refill import RefillRequest
from headrace import output, refills
from headrace.config import Config
from headrace.errors import CommandError


class Resynced(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, at `lsn`. `as_of`: by tenant, of the new replicas, as far as they are here."""

    tenants: list[str]
    lsn: str
    as_of: dict[str, str]
    seconds: float


def resync(config: Config, tenants: Sequence[str], *, partition: int | None, wait_s: float | None) -> Resynced:
    """Ask for it, and with `wait_s` wait so long for those whose partition is here. Raises SourceError, LogError,
    ReplicasMissing, TenantUnknown, PointNotReached."""
    begun = time.monotonic()
    names = list(dict.fromkeys(tenants)) if partition is None else _names_in(config, partition)
    if "" in names:
        hint = "`headrace relay --new-generation` copies everything."
        raise CommandError("A tenant without a name cannot be made anew", hint=hint)
    requests = [RefillRequest(tenant=name, slot=config.source.slot) for name in names]
    lsn = refills.ask(config.dsn(), requests)
    made = {} if wait_s is None else _wait(config, lsn, requests, begun + wait_s)
    seconds = round(time.monotonic() - begun, 3)
    return Resynced(tenants=names, lsn=format_lsn(lsn), as_of=made, seconds=seconds)


def _wait(config: Config, lsn: Lsn, requests: Sequence[RefillRequest], until: float) -> dict[str, str]:
    count = len(requests)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=output.err, transient=True, disable=not output.err.is_terminal) as bar:
        task = bar.add_task("")

        def tell(left: int) -> None:
            bar.update(task, description=f"{left:,} of {count:,} left")

        refills.wait(config, lsn, requests, until - time.monotonic(), tell)
        return wait_made(config, lsn, [request.tenant for request in requests], until, tell)


def wait_made(
    config: Config, lsn: Lsn, tenants: Sequence[str], until: float, tell: Callable[[int], None] = lambda _: None
) -> dict[str, str]:
    """Until the replicas of these tenants, as far as their partitions are here, are such as were asked for before `lsn`;
    answers as of which LSN each is. Raises PointNotReached after `until` (time.monotonic), ReplicasMissing."""
    made = dict[str, str]()
    with Directory(Path(config.replicas.path)) as directory:
        here = directory.partitions()
        waiting = [tenant for tenant in tenants if directory.partition_of(tenant) in here]
        while waiting := [tenant for tenant in waiting if not _is_made(directory, tenant, lsn, made)]:
            tell(len(waiting))
            refills.pause(until, "The appliers have not applied it yet")
    return made


def _is_made(directory: Directory, tenant: str, lsn: Lsn, made: dict[str, str]) -> bool:
    """Whether the replica is one that was made since."""
    try:
        with directory.open(tenant) as replica, replica.snapshot():
            found = resynced_by(replica.connection)
    except (TenantUnknown, TenantError, ReplicaReplaced):
        return False
    as_of = (found or "").partition(" ")[2]
    if not as_of or parse_lsn(as_of) < lsn:
        return False
    made[tenant] = as_of
    return True


def _names_in(config: Config, partition: int) -> list[str]:
    with Directory(Path(config.replicas.path)) as directory:
        names = [file.tenant or tenant_of(file.path) for file in directory.files(partition)]
    found = sorted(name for name in names if name is not None)
    if not found:
        raise TenantUnknown("No replica of this partition is here", partition=partition)
    return found


def show_resynced(done: Resynced) -> None:
    """In a few words."""
    count = len(done.as_of)
    if not count:
        what = f"{len(done.tenants):,} replicas" if len(done.tenants) != 1 else f"The replica of {done.tenants[0]}"
        output.out.print(f"{what}: asked for at {done.lsn}; `headrace status` shows how far it is")
    elif count == 1:
        [(tenant, as_of)] = done.as_of.items()
        output.out.print(f"The replica of {tenant}: made anew as of {as_of}, in {done.seconds:.1f} s")
    else:
        first = min(done.as_of.values(), key=parse_lsn)
        output.out.print(f"{count:,} replicas: made anew as of {first} or later, in {done.seconds:.1f} s")
