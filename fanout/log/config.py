"""What a user may say about the log. The table `[log]` of the configuration file is decoded into `LogConfig`.

Invariant: whatever order, durability or the meaning of an offset rests on is not a setting. Those keys of librdkafka
that hold it up are ours, and a configuration that names one is refused here, before anything is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fanout.errors import LogError

OWNED_KAFKA_KEYS: Final = frozenset(
    {
        "acks",
        "allow.auto.create.topics",
        "auto.commit.enable",
        "auto.offset.reset",
        "bootstrap.servers",
        "delivery.report.only.error",
        "delivery.timeout.ms",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.gapless.guarantee",
        "enable.idempotence",
        "enable.partition.eof",
        "fetch.min.bytes",
        "group.instance.id",
        "group.protocol",
        "isolation.level",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "message.max.bytes",
        "message.send.max.retries",
        "message.timeout.ms",
        "metadata.broker.list",
        "partition.assignment.strategy",
        "partitioner",
        "queuing.strategy",
        "receive.message.max.bytes",
        "request.required.acks",
        "retries",
        "transactional.id",
    }
)

_SECRET_WORDS: Final = ("password", "secret", "key", "jaas", "token", "pem", "config")


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log between relay and appliers. Both sides read the same settings."""

    kind: Literal["embedded", "kafka"] = "embedded"
    """`embedded` needs nothing else on the machine; `kafka` is for appliers on several machines."""

    path: str = ".headrace/log"
    """The embedded log's directory. Beside the replicas, so that one directory holds all that a machine keeps."""

    bootstrap: str = ""
    """Kafka's `host:port[,host:port]`. No default: an applier must never find a broker by accident."""

    topic: str = "headrace"
    """The Kafka topic, made by the relay when it is missing. One topic carries one source."""

    partitions: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Fixed for the life of the log, since a tenant's partition follows from it: enough for 64 appliers, and few enough
    that a record for everybody stays cheap."""

    replication_factor: Annotated[int, Meta(ge=1, le=32767)] = 1
    """Copies of each Kafka partition. 1 suits one broker; a cluster wants 3, of which 2 must then have a record."""

    retention_hours: Annotated[float, Meta(gt=0)] = 168.0
    """How long records stay: a week, so that an applier may be away for a long weekend and still go on."""

    max_record_bytes: Annotated[int, Meta(ge=1024, le=512 << 20)] = 8 << 20
    """The largest record, key included. Eight times the megabyte at which the relay cuts a large transaction, so only
    a single enormous row can reach it."""

    kafka: dict[str, str] = msgspec.field(default_factory=dict)
    """More settings for librdkafka (`security.protocol`, `sasl.*`, `ssl.*`, `compression.type`, `group.id`, ...).
    Those that order and durability rest on are refused."""

    kafka_files: dict[str, str] = msgspec.field(default_factory=dict)
    """The same, but each value is read from the file named here: `{ "sasl.password" = "/run/secrets/kafka" }`. For secrets,
    which are then in no configuration and no environment. Blanks and the line's end around it are left out."""

    def __post_init__(self) -> None:
        # ValueError: msgspec turns it into a ValidationError that names the place in the file
        if self.kind == "kafka" and not self.bootstrap:
            raise ValueError('`bootstrap` is missing: name the brokers, `bootstrap = "host:9092"`')
        if twice := sorted(self.kafka.keys() & self.kafka_files.keys()):
            raise ValueError(f"`{'`, `'.join(twice)}` under both `kafka` and `kafka_files`: leave it in one")
        if owned := sorted(OWNED_KAFKA_KEYS & (self.kafka.keys() | self.kafka_files.keys())):
            raise ValueError(
                f"`kafka` may not set {', '.join(f'`{key}`' for key in owned)}: exactly-once delivery rests on it, "
                f"so Headrace sets it itself. Remove {'it' if len(owned) == 1 else 'them'}"
            )

    def kafka_settings(self) -> dict[str, str]:
        """`kafka` and what the files hold now. Raises LogError for a file that cannot be read, or is empty."""
        return {**self.kafka, **{key: _secret(key, Path(name)) for key, name in self.kafka_files.items()}}

    def __repr__(self) -> str:
        def shown(name: str) -> object:
            return self._masked_kafka() if name == "kafka" else getattr(self, name)

        return f"LogConfig({', '.join(f'{name}={shown(name)!r}' for name in self.__struct_fields__)})"

    def _masked_kafka(self) -> dict[str, str]:
        return {key: "***" if any(word in key for word in _SECRET_WORDS) else value for key, value in self.kafka.items()}


def _secret(key: str, path: Path) -> str:
    hint = f"Correct `{key}` under `log.kafka_files`: the file must be readable by this user, and hold the value alone."
    try:
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise LogError(f"The file with {key} cannot be read: {reason}", hint=hint, path=str(path)) from None
    if not value:
        raise LogError(f"The file with {key} is empty", hint=hint, path=str(path))
    return value
