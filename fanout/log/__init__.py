"""The log between relay and appliers: one contract (`interface`), two implementations (`embedded`, `kafka`).

`open_writer` and `open_reader` choose by `LogConfig.kind`. Nothing else in Headrace knows which one it uses.
"""

from fanout.log.config import LogConfig
from fanout.log.interface import BEGINNING, Extent, LogReader, LogWriter, Record, partition_of

__all__ = [
    "BEGINNING",
    "Extent",
    "LogConfig",
    "LogReader",
    "LogWriter",
    "Record",
    "open_reader",
    "open_writer",
    "partition_of",
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
