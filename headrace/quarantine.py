"""`headrace tenant release`, `tenant skip` and `tenant history`: what a person asks of tenants that stopped.

An order is written beside the replicas and their applier is woken; it does the work while others' records flow
(`appliers.release`). So one that is given while no applier runs waits for the next. Both name the record at which the tenant
stands, so that nobody skips another one than he has looked at.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from pathlib import Path

import msgspec

from appliers.orders import Action, Happened, Order, open_orders, ring
from appliers.reader import Directory
from headrace.errors import NotQuarantined, RecordMismatch


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, of the record at `position`."""

    tenant: str
    action: Action
    position: str
    asked_by: str


def ask(root: Path, tenant: str, action: Action, position: str | None = None) -> Asked:
    """Write an order about a quarantined tenant, and wake its applier. `position`: as the caller knows it.

    Raises NotQuarantined, RecordMismatch, ReplicasMissing, StateForeign, StorageUnavailable.
    """
    with Directory(root) as directory:
        entry = directory.quarantined().get(tenant)
    if entry is None:
        raise NotQuarantined("The tenant is not quarantined", tenant=tenant)
    if position is not None and position != entry.position:
        raise RecordMismatch(f"The tenant stands at {entry.position}", tenant=tenant)
    by = who()
    with open_orders(root) as orders:
        orders.ask(Order(tenant, action, entry.position, by, time.time_ns() // 1_000_000))
    ring(root)
    return Asked(tenant=tenant, action=action, position=entry.position, asked_by=by)


def who() -> str:
    """Who gives a command, for the audit trail."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def history(root: Path, tenant: str | None) -> list[Happened]:
    """The audit trail, of one tenant or of all. Raises ReplicasMissing, StateForeign, StorageUnavailable."""
    with open_orders(root) as orders:
        return orders.trail(tenant)
