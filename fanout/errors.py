"""Errors of the route and log stages. The tree's root and the dispositions are in `cdc.errors`.

RouteError                 which tenant a row belongs to
  TenantColumnMissing TenantKeyMissing IdentityUnfit FiltersUnfit ShareImpossible RowElsewhere
LogError                   Kafka or the embedded log
  LogUnavailable           (retry) broker down, connection cut
    LogMissing             (retry) its relay has never run
  LogInUse LogTrimmed LogReplaced PartitionCountChanged RecordTooLarge DeliveryFailed EnvelopeUnknown LogCorrupt
  MemberReplaced
"""

from __future__ import annotations

from cdc.errors import Disposition, HeadraceError


class RouteError(HeadraceError):
    """A row cannot be given to a tenant."""

    default_hint = "Run `headrace check`: it names the table and prints the ALTER that fixes it."


class TenantColumnMissing(RouteError):
    """The tenancy rule names a column that the table does not have."""

    default_hint = "Correct `[[tenancy]]` for this table, or declare the table `shared = true` or `ignore = true`."


class TenantKeyMissing(RouteError):
    """A row has NULL for its tenant, or a DELETE does not carry the tenant, and the policy does not say what to do."""

    default_hint = (
        'For NULLs set `on_null = "skip"` or `on_null = "shared"` in this table\'s `[[tenancy]]` rule. For DELETEs put the '
        "tenant into the replica identity, as `headrace check` says, and then, since those already written do not tell it, "
        "run `headrace relay --new-generation`."
    )


class IdentityUnfit(RouteError):
    """A table's old rows would not tell their tenant, so that its DELETEs could not be routed; found before they happen."""


class FiltersUnfit(RouteError):
    """The publication does not hold back what `[placement]` gives to another pipeline, or holds back too much."""

    default_hint = "`headrace setup` gives the publication the row filters of the configuration."


class ShareImpossible(RouteError):
    """The tenant column is of a type that Postgres cannot hash in a row filter."""

    default_hint = "Give each relay a publication with some of the tables, or a `region` column in place of `share`."


class RowElsewhere(RouteError):
    """A row of another region has come: nothing of its transaction is appended."""

    default_hint = (
        "The publication's row filter was changed. `headrace setup` puts it right; what was written meanwhile stays in the "
        "slot, so then `headrace relay --new-generation`."
    )


class LogError(HeadraceError):
    """The log between relay and appliers."""

    default_hint = "Run `headrace status` for the state of the log."


class LogUnavailable(LogError):
    """The broker is down or the connection was cut; nothing is lost while Postgres keeps its WAL."""

    disposition = Disposition.RETRY
    default_hint = "Check that the broker runs and that `log.bootstrap` names it. Postgres keeps the WAL meanwhile."


class LogMissing(LogUnavailable):
    """There is no log of that name yet: its relay has never run."""

    default_hint = "`headrace relay` makes it. Check that relay and appliers name the same log."


class LogInUse(LogError):
    """Another process appends to this embedded log."""

    default_hint = "One relay appends to one log. Stop the other relay, or give this one its own `log.path`."


class LogTrimmed(LogError):
    """Retention removed records that a reader still needs."""

    default_hint = "`headrace relay --new-generation` copies afresh; then raise `log.retention_hours`."


class LogReplaced(LogError):
    """The replicas were written from another log than this one."""

    default_hint = "Point `log` to the log these replicas came from, or `replicas.path` to an empty directory."


class PartitionCountChanged(LogError):
    """The log has another number of partitions than the configuration or the replicas: tenants would change places."""

    default_hint = "Set `log.partitions` back to the log's own count, or start a new topic and an empty `replicas.path`."


class RecordTooLarge(LogError):
    """One record is larger than the log takes; it is never dropped, so the pipeline stops."""

    default_hint = "Raise `max.message.bytes` of the topic and `log.max_record_bytes` above the size named here."


class DeliveryFailed(LogError):
    """The broker refused a record for good."""

    default_hint = "See the broker's log. Nothing past the last confirmed LSN was confirmed; a restart sends it again."


class EnvelopeUnknown(LogError):
    """A record of a version this Headrace does not know."""

    default_hint = "A newer Headrace wrote this log: upgrade the appliers before the relay."


class LogCorrupt(LogError):
    """The embedded log's file is not a log of ours or is damaged."""

    default_hint = "Move `log.path` away and start over with `headrace relay --new-generation`, or restore it."


class MemberReplaced(LogError):
    """Another process has joined the group under this member's name: the partitions are its own now."""

    default_hint = "Give each applier its own `--instance`. If the other one is meant to take its place, all is well."
