"""Errors of the apply stage. The tree's root and the dispositions are in `cdc.errors`.

ApplyError
  TenantError              (quarantine) one tenant cannot go on; the others do
    RowMissing PositionGap SchemaDrift ReplicaCorrupt ReplicaForeign ReplicaLost RecordRefused SnapshotDamaged
  StorageUnavailable       (retry) disk full, I/O error, no descriptors: nobody's fault, nothing is lost
  StoreUnavailable         (retry) the same of the object store
  ReplicaReplaced          (retry) the file that is open is not the replica any more
  PartitionInUse StateForeign ReplicasMissing TenantUnknown
  ReplayError              the log cannot be replayed as asked
    StartUncovered PointTooEarly ReplicasAhead
    PointNotReached        (retry) the relay has not come so far
  StoreMisconfigured ManifestUnreadable Fenced
  ReleaseRefused           a quarantined tenant stays as it is
"""

from __future__ import annotations

from cdc.errors import Disposition, HeadraceError


class ApplyError(HeadraceError):
    """Log -> replicas."""

    default_hint = "Run `headrace status`."


class TenantError(ApplyError):
    """This tenant's record cannot be applied: the tenant is quarantined, its replica stays readable, others go on."""

    disposition = Disposition.QUARANTINE
    default_hint = (
        "`headrace tenant info` shows the record's place. Mend the cause and `headrace tenant release`, or go on without the"
        " record by `headrace tenant skip`; `headrace resync` makes the replica anew from Postgres."
    )


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

    default_hint = "`headrace resync` makes the replica anew from Postgres, in a new file."


class ReplicaForeign(TenantError):
    """A file in the replica's place that is not this tenant's replica; it is not touched."""

    default_hint = (
        "Point `replicas.path` to a directory of Headrace's own; or `headrace resync` makes the replica anew, and sets the "
        "file aside."
    )


class ReplicaLost(TenantError):
    """The replica's file was removed or exchanged: a new one would hold only what changes from now on."""

    default_hint = "`headrace resync` makes it anew from Postgres. An older copy of the file lacks what came after it."


class SnapshotDamaged(TenantError):
    """A snapshot that the manifest names is gone, or is not what was stored. Nothing was put into the replica's place.

    The tenant's alone, since every other has its own object; and asking again does not mend it.
    """

    default_hint = (
        "Restore the object from the store's own versions or backup; `headrace resync` makes the replica anew from Postgres."
    )


class StorageUnavailable(ApplyError):
    """The disk is full or fails. Nothing is lost: the log keeps what is not applied."""

    disposition = Disposition.RETRY
    default_hint = "Free space on the file system of `replicas.path`; the applier goes on by itself."


class ReplicaReplaced(ApplyError):
    """The replica goes on in a new file, as somebody read from this one for so long that its WAL outgrew it (R16)."""

    disposition = Disposition.RETRY
    default_hint = "Open the replica again; and let no transaction on a replica stay open for long."


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


class ReplayError(ApplyError):
    """The log cannot be replayed as asked; replicas hold nothing that is wrong."""

    default_hint = "See docs/replay.md."


class StartUncovered(ReplayError):
    """What stands before the start is in no replica: records from there on alone would make one that is silently partial."""

    default_hint = "Leave `--from` out: a new directory then begins at the first copy, another one where its replicas are."


class PointTooEarly(ReplayError):
    """At that point there was no whole first copy in the log, so that nobody knows what the tenants had."""

    default_hint = "Ask for a later point: `headrace tail --kind copy-end` shows where each copy ended."


class PointNotReached(ReplayError):
    """The log may lack transactions that committed before the point."""

    disposition = Disposition.RETRY
    default_hint = "Wait until the relay has come so far, or take all that is there with `--until end`."


class ReplicasAhead(ReplayError):
    """Replicas are behind the point already, and nothing takes them back."""

    default_hint = "Replay into a new directory."


class StoreUnavailable(ApplyError):
    """The object store does not answer, or its disk is full. Nothing is lost: the log keeps what no snapshot holds."""

    disposition = Disposition.RETRY
    default_hint = "Check that the object store of `snapshots.url` can be reached and has room; it is tried again by itself."


class StoreMisconfigured(ApplyError):
    """The object store refuses for good: a URL that means nothing, a bucket that is not there, rights that are missing."""

    default_hint = (
        "Correct `snapshots.url`, and give the applier rights to list, read, write and delete below it. Credentials come "
        "from the environment, as the provider's own tools read them."
    )


class ManifestUnreadable(ApplyError):
    """The newest manifest of a partition is damaged, of another log or partition, or of a newer Headrace."""

    default_hint = (
        "Upgrade the appliers if a newer Headrace wrote it. If it is damaged, remove that object: the manifest before it "
        "holds then, and more of the log is read again."
    )


class TimeTravelError(ApplyError):
    """A place in a tenant's past that cannot be gone to."""


class TimeInvalid(TimeTravelError):
    """A time in the future, or further back than the tenant is kept."""

    default_hint = "`headrace time-travel info` shows how far back the tenant can be taken."


class BookmarkInvalid(TimeTravelError):
    """A text that is no bookmark, or one of another tenant or log."""

    default_hint = "Give one as it was answered for this tenant; `headrace time-travel info` shows the bookmark of a time."


class TableUnknown(TimeTravelError):
    """The tenant has no such table, or its rows are told apart by other columns."""

    default_hint = "`headrace tenant info` shows the tables and their keys."


class NothingToUndo(TimeTravelError):
    """The tenant was never restored, or what was served before is served."""

    default_hint = "`headrace time-travel info` shows what is served."


class CloneExists(TimeTravelError):
    """The name is that of another database."""

    default_hint = "Name another one, or remove it with `headrace time-travel unclone`."


class HistoryUnreadable(ApplyError):
    """A segment of a partition's history is damaged, or of a newer Headrace."""

    default_hint = (
        "Upgrade if a newer Headrace wrote it. If it is damaged, remove that object: what was in it is read from the log, "
        "as far as the log goes back."
    )


class Fenced(ApplyError):
    """Another applier has claimed the partition since: whoever meets this stops writing it at once and publishes nothing."""

    default_hint = "Nothing has to be done: the partition has a newer owner, which goes on with it."


class ReleaseRefused(ApplyError):
    """What was asked of a quarantined tenant cannot be done; it stays as it is."""

    default_hint = (
        "`headrace tenant info` shows where the tenant stands now; `headrace resync` makes the replica anew from Postgres."
    )
