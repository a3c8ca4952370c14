"""`headrace verify --repair`: what differs -> the least that the relay has to bring again, and a second look.

    rows of a table with a key   asked for by their keys: what Postgres has of them comes, what it has not goes
    anything else of a tenant    its replica is made anew (`appliers.resync`): indexes, tables, damage, too many rows, and
                                 whatever it was quarantined for
    the shared replica           by keys, or the whole table; what is not rows cannot be repaired there

It goes through the stream and the log, so every copy of the replica gets it, and nothing is written here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cdc.refill import RefillRequest
from fanout.tenancy import SHARED_TENANT
from headrace import output, refills
from headrace.config import Config
from headrace.resync import wait_made
from headrace.verify import Identity, TenantVerified, Verified, Wanted, show_verified, verify

_ROWS: Final = frozenset({"missing", "extra", "changed"})


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be brought again. `rows`: by key; `anew`: tenants; `tables`: whole, for everybody who has them;
    `beyond`: tenants that cannot be repaired so."""

    rows: int = 0
    anew: list[str] = []
    tables: list[str] = []
    beyond: list[str] = []
    requests: list[RefillRequest] = []


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """`after`: a second look at the replicas that differed; None when nothing was done."""

    found: Verified
    plan: Plan
    after: Verified | None


def is_wrong(one: TenantVerified) -> bool:
    """Whether there is something to repair: not where a copy is under way."""
    return one.outcome == "differs" or one.quarantined


def plan_of(found: Sequence[TenantVerified], identities: Mapping[str, Identity], slot: str) -> Plan:
    """What differs -> what is to be done. Pure."""
    rows, anew, tables, beyond = 0, list[str](), dict[str, None](), list[str]()
    requests = list[RefillRequest]()
    for one in filter(is_wrong, found):
        if one.tenant == "":
            beyond.append("''")  # no request can name it
            continue
        by_key = defaultdict[str, list[tuple[str, ...]]](list)
        for difference in one.differences:
            by_key[difference.table].append(difference.key)
        only_rows = not one.reason and all(d.kind in _ROWS and d.table in identities for d in one.differences)
        if only_rows and not one.more and all(d.key for d in one.differences):
            for table, keys in by_key.items():
                identity = identities[table]
                requests.append(
                    RefillRequest(identity.oid, True, tuple(keys), identity.columns, one.tenant or SHARED_TENANT, slot)
                )
                rows += len(keys)
        elif one.tenant is not None:
            anew.append(one.tenant)
            requests.append(RefillRequest(tenant=one.tenant, slot=slot))
        elif only_rows:
            tables.update(dict.fromkeys(by_key))
        else:
            beyond.append(SHARED_TENANT)
    requests += [RefillRequest(identities[table].oid, True, slot=slot) for table in tables]
    return Plan(rows=rows, anew=anew, tables=list(tables), beyond=beyond, requests=requests)


def repair(config: Config, wanted: Wanted, *, dry_run: bool, timeout_s: float) -> Repaired:
    """Verify, ask for what is missing, wait for it, and verify again what differed. Raises as `verify`."""
    found, identities = verify(config, wanted)
    plan = plan_of(found.replicas, identities, config.source.slot)
    if dry_run or not plan.requests:
        return Repaired(found=found, plan=plan, after=None)
    since = refills.ask(config.dsn(), plan.requests)
    columns = (SpinnerColumn(), TextColumn("Waiting for what was asked for"), TimeElapsedColumn())
    with Progress(*columns, console=output.err, transient=True, disable=not output.err.is_terminal) as bar:
        bar.add_task("")
        until = time.monotonic() + timeout_s
        refills.wait(config, since, plan.requests, timeout_s)
        wait_made(config, since, plan.anew, until)  # what the log brings by rows is compared as of the log
    again = [one for one in found.replicas if is_wrong(one)]
    tenants = tuple(one.tenant for one in again if one.tenant is not None)
    shared = any(one.tenant is None for one in again)
    after, _ = verify(config, msgspec.structs.replace(wanted, tenants=tenants, shared=shared, partition=None, sample=None))
    return Repaired(found=found, plan=plan, after=after)


def show_repaired(done: Repaired) -> None:
    """What was found, what was done about it, and how it is now."""
    show_verified(done.found)
    plan = done.plan
    facts = {
        "rows by their keys": f"{plan.rows:,}" if plan.rows else None,
        "replicas made anew": f"{len(plan.anew):,}: {', '.join(plan.anew[:10])}" if plan.anew else None,
        "whole tables": ", ".join(plan.tables) or None,
        "cannot be repaired so": ", ".join(plan.beyond) or None,
    }
    if plan.requests or plan.beyond:
        output.print_facts("Repaired" if done.after is not None else "To be repaired", facts)
    if done.after is not None:
        show_verified(done.after)
