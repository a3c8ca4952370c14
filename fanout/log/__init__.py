"""The log between relay and appliers: one contract (`interface`), two implementations (`embedded`, `kafka`).

`open_writer`, `open_reader` and `open_member` choose by `LogConfig.kind`. Nothing else in Headrace knows which one it uses.
"""

from fanout.errors import LogError
from fanout.log.config import LogConfig
from fanout.log.interface import (
    BEGINNING,
    Change,
    Extent,
    LogMember,
    LogReader,
    LogWriter,
    Moved,
    Record,
    partition_of,
)

__all__ = [
    "BEGINNING",
    "Change",
    "Extent",
    "LogConfig",
    "LogMember",
    "LogReader",
    "LogWriter",
    "Moved",
    "Record",
    "open_member",
    "open_reader",
    "open_writer",
    "partition_of",
    "retention_of",
]


def open_writer(config: LogConfig) -> LogWriter:
    """The relay's side; makes the log when there is none.

    Raises LogUnavailable, LogInUse, LogCorrupt, PartitionCountChanged, LogError.
    """
    if config.kind == "kafka":
        from fanout.log.kafka import KafkaWriter

        return KafkaWriter(config)
    from fanout.log.embedded import EmbeddedWriter

    return EmbeddedWriter(config)


def open_reader(config: LogConfig) -> LogReader:
    """An applier's side, with no partition assigned.

    Raises LogUnavailable (also while there is no log yet), LogCorrupt, LogError.
    """
    if config.kind == "kafka":
        from fanout.log.kafka import KafkaReader

        return KafkaReader(config)
    from fanout.log.embedded import EmbeddedReader

    return EmbeddedReader(config)


def open_member(config: LogConfig, instance: str) -> LogMember:
    """An applier's side, to which the group of appliers gives partitions. `instance`: its name, no other member's.

    Raises LogUnavailable, LogError.
    """
    if config.kind == "kafka":
        from fanout.log.kafka import KafkaMember

        return KafkaMember(config, instance)
    raise LogError(
        "The embedded log has no groups of appliers", hint='Leave `apply.group` out, or set `log.kind = "kafka"`.'
    )


def retention_of(config: LogConfig) -> float | None:
    """How long the log keeps records, in seconds; None: for ever. Of a topic that exists, as the broker says.

    Raises LogUnavailable, LogMissing, LogError.
    """
    if config.kind == "kafka":
        from fanout.log.kafka import TopicAdmin

        return TopicAdmin(config).retention_s()
    return config.retention_hours * 3600
