"""Errors of the apply stage. The tree's root and the dispositions are in `cdc.errors`.

ApplyError
  TenantError              (quarantine) one tenant cannot go on; the others do
    RowMissing PositionGap SchemaDrift ReplicaCorrupt ReplicaForeign ReplicaLost RecordRefused
  StorageUnavailable       (retry) disk full, I/O error, no descriptors: nobody's fault, nothing is lost
  PartitionInUse StateForeign ReplicasMissing TenantUnknown
"""

from __future__ import annotations

from cdc.errors import Disposition, HeadraceError


class ApplyError(HeadraceError):
    """Log -> replicas."""

    default_hint = "Run `headrace status`."


class TenantError(ApplyError):
    """This tenant's record cannot be applied: the tenant is quarantined, its replica stays readable, others go on."""

    disposition = Disposition.QUARANTINE
    default_hint = "`headrace tenant info` shows the record's place; `headrace relay --new-generation` copies afresh."


class RowMissing(TenantError):
    """An update with unchanged values meets a row that the replica does not have."""


class PositionGap(TenantError):
    """A part of a transaction is missing."""


class SchemaDrift(TenantError):
    """The replica's table cannot be brought to the shape that the record needs."""


class RecordRefused(TenantError):
    """SQLite refused the record's rows."""


class ReplicaCorrupt(TenantError):
    """The replica's file is damaged."""

    default_hint = "The file is left as it is. Move it away; `headrace relay --new-generation` copies afresh."


class ReplicaForeign(TenantError):
    """A file in the replica's place that is not this tenant's replica; it is not touched."""

    default_hint = "Move the file away, or point `replicas.path` to a directory of Headrace's own."


class ReplicaLost(TenantError):
    """The replica's file was removed or exchanged: a new one would hold only what changes from now on."""

    default_hint = "`headrace relay --new-generation` copies afresh. An older copy of the file lacks what came after it."


class StorageUnavailable(ApplyError):
    """The disk is full or fails. Nothing is lost: the log keeps what is not applied."""

    disposition = Disposition.RETRY
    default_hint = "Free space on the file system of `replicas.path`; the applier goes on by itself."


class PartitionInUse(ApplyError):
    """Another applier writes this partition's replicas."""

    default_hint = "Give each applier of one directory its own `--share`, such as 1/2 and 2/2, or set `apply.group`."


class StateForeign(ApplyError):
    """`replicas.path` holds something else than the state of this log's replicas."""

    default_hint = "Point `replicas.path` to the directory of this log's replicas, or to an empty one."


class ReplicasMissing(ApplyError):
    """No applier has written into `replicas.path` yet."""

    default_hint = "`headrace run` makes them. Check that `replicas.path` names the appliers' directory."


class TenantUnknown(ApplyError):
    """No replica of that tenant exists here."""

    default_hint = "`headrace tenant list` names those there are."
