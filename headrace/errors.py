"""Errors of the command line and the configuration. The tree's root and the dispositions are in `cdc.errors`.

ConfigError       the configuration file or environment
CommandError      a command cannot do what was asked
  PartitionUnknown NotQuarantined RecordMismatch Unrecoverable PortTaken
"""

from __future__ import annotations

from cdc.errors import HeadraceError


class ConfigError(HeadraceError):
    """The configuration cannot be used as it is."""

    default_hint = "See docs/configuration.md."


class CommandError(HeadraceError):
    """A command cannot do what was asked."""

    default_hint = "`headrace --help` lists the commands."


class PartitionUnknown(CommandError):
    """The log has no partition of this number."""

    default_hint = "Partitions are numbered from 0; `headrace status` says how many there are."


class NotQuarantined(CommandError):
    """There is nothing to release."""

    default_hint = "`headrace tenant list --quarantined` names those that stopped."


class RecordMismatch(CommandError):
    """Another record than the one that was named is what the tenant stands at."""

    default_hint = "Look at it with `headrace tenant info`, and name that one."


class Unrecoverable(CommandError):
    """No SQL brings the rows of a tenant back in Postgres as they were."""

    default_hint = (
        "Make one of the constraints deferrable (`alter table ... alter constraint ... deferrable`) while the script runs, "
        "or leave a table out."
    )


class PortTaken(CommandError):
    """Nothing can listen where it should."""

    default_hint = "Choose another `edge.port` or `edge.host`, or end what listens there."
