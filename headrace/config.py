"""Configuration: one TOML file, `HEADRACE_*` environment over it, decoded into frozen structs.

    headrace.toml  ->  {source: {dsn: ...}, log: {...}, ...}
    HEADRACE_SOURCE_DSN=...  ->  source.dsn          HEADRACE_LOG_KIND=kafka  ->  log.kind

An error names the file and the path of the value (`$.apply.batch_records`). Secrets never show in a repr.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from appliers.types import As
from edge.settings import EdgeConfig
from fanout.log import LogConfig
from fanout.placement import Placement, misfit
from fanout.tenancy import Rule
from headrace.errors import ConfigError

DEFAULT_FILE: Final = "headrace.toml"
PREFIX: Final = "HEADRACE_"

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Postgres, which is the source of truth."""

    dsn: str = ""
    """libpq connection string, to the server itself and not to a pooler. May hold a password: it is never shown."""
    dsn_file: str = ""
    """A file that holds the connection string instead, for secrets that come as files."""
    slot: str = "headrace"
    """The replication slot. One relay reads one slot."""
    publication: str = "headrace"
    """The publication: which tables are read. `headrace setup` makes it."""
    copy_workers: Count = 2
    """Connections for the first copy. Two keep one relay busy; more help where the server has cores to spare."""
    refill_share: Share = 0.25
    """What is read again beside the stream (a tenant made anew, a table, a repair) is read for this share of the time. With
    1, as fast as it can be; others' records wait for it."""
    slot_timeout_s: Positive = 60.0
    """How long making the slot may wait for older transactions of the source before it is an error."""
    progress_interval_s: Positive = 1.0
    """How often the relay tells every partition how far it is, and Postgres what it may forget."""
    watch_interval_s: Positive = 10.0
    """How often the relay looks, on a connection of its own, at what the server keeps for the slot."""
    heartbeat_s: Annotated[float, Meta(ge=0)] = 10.0
    """How often the relay writes an empty logical message, while nothing else moves the slot; 0: never."""
    stall_timeout_s: Annotated[float, Meta(ge=0)] = 120.0
    """After so long without a sign of life from a server that goes on, the relay connects again; not before
    `wal_sender_timeout` is over. 0: never."""
    drop_slot_above_bytes: Annotated[int, Meta(ge=0)] = 0
    """For a server without `max_slot_wal_keep_size`: drop the slot when more WAL than this is kept for it, before the disk
    is full and the database stops. `headrace recover` is the way back. 0: never."""
    failover: bool = True
    """Make the slot so that a standby may have it too, where the server can (PostgreSQL 17 on)."""
    streaming: bool = True
    """Take large transactions while they run. Without, Postgres keeps each on its own disk until it commits."""
    spill_path: str = ""
    """Where transactions wait that have not committed and outgrow memory: nameless files. Empty: `spill` in `run.path`."""
    spill_memory_bytes: Annotated[int, Meta(ge=65536)] = 32 << 20
    """What such transactions may take of memory, all together, before the largest is written to disk."""

    def __repr__(self) -> str:
        return f"SourceConfig(dsn='***', slot={self.slot!r}, publication={self.publication!r})"


class ReplicasConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the tenants' SQLite files are."""

    path: str = ".headrace/replicas"
    """The directory. One applier at a time writes each partition in it."""
    warm: Count = 2000
    """Replicas kept open for writing by one applier: three file descriptors (fewer replicas where `ulimit -Hn` allows
    fewer files) and about 100 KB each."""


class ApplyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How appliers work."""

    appliers: Count = 1
    """Applier processes that `headrace run` starts; each takes its share of the partitions."""
    group: bool = False
    """Appliers are a Kafka consumer group, on any number of machines: partitions move to those that live, a dead one's
    within `session.timeout.ms` of `log.kafka`. Without, each has a fixed share. Needs `log.kind = "kafka"`."""
    instance: Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{0,200}$")] = ""
    """The name of this machine's applier in the group, no other's; empty: the host name. `headrace run` adds a number. Under
    the same name a restarted applier gets the same partitions, and nothing moves."""
    batch_records: Count = 20_000
    """Most records in one batch. Larger batches put more rows into one commit; a batch is never waited for."""
    batch_bytes: Annotated[int, Meta(ge=65536)] = 32 << 20
    """Most bytes in one batch: what bounds an applier's memory."""
    barrier_interval_s: Positive = 5.0
    """How often replicas are made durable and the offsets behind them saved: what a power cut makes it read again."""
    checkpoint_pages: Count = 1000
    """A replica whose SQLite WAL has more pages than this (4 KB each) is checkpointed, in the background."""
    wal_pages: Count = 16_384
    """A replica whose WAL has more pages than this and than itself, because somebody has a transaction open on it, goes on
    in a new file; that reader is told to open it again."""


class SnapshotsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Copies of replicas in an object store. A tenant that has changed is copied when any of the bounds is reached."""

    url: str = ""
    """A directory, or `s3://`, `gs://`, `az://` with bucket and prefix. Empty: no snapshots. Credentials come from the
    environment, as the provider's own tools read them."""
    options: dict[str, str] = {}
    """Settings of the bucket's client, by obstore's names, such as `aws_region`, `aws_endpoint`. Never shown."""
    days: Annotated[float, Meta(ge=0)] = 7.0
    """How far back in time a tenant can be taken: how long its history, and snapshots that newer ones replaced, are kept."""
    tenant_days: dict[str, Annotated[float, Meta(ge=0)]] = {}
    """The same for some tenants, such as those of a plan: a tenant's id, or a pattern of ids such as `free-*`, and its days.
    The first that fits counts."""
    changes: Count = 50_000
    """Changed rows of a tenant after which it is copied."""
    bytes: Annotated[int, Meta(ge=65536)] = 32 << 20
    """Bytes of a tenant's records in the log after which it is copied."""
    age_s: Positive = 900.0
    """How long the oldest change of a tenant may wait for a copy: what a new owner of its partition reads again."""
    interval_s: Positive = 30.0
    """How often an applier looks for tenants to copy, and publishes what it has."""
    at_once: Count = 64
    """Most copies in one such round of a partition."""

    def __repr__(self) -> str:
        return f"SnapshotsConfig(url={self.url!r}, options='***')"


class ColumnConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"as_": "as"}):
    """How one column is stored, when not as its type says."""

    column: str
    """`schema.table.column`."""
    as_: As
    """real: as a double (a numeric may round); unix_ms: a timestamp as Unix milliseconds; text: as Postgres prints it."""


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Processes on this machine."""

    path: str = ".headrace/run"
    """Where each process writes its status, about once a second, for `headrace status` and `headrace lag`."""
    retry_s: Positive = 30.0
    """Longest wait between two attempts after an error worth retrying. The first wait is half a second."""


Address = Annotated[str, Meta(pattern=r"^$|^(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]+):[0-9]{1,5}$")]


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where processes answer Prometheus (`docs/metrics.md`): `host:port`, without encryption or tokens."""

    listen: Address = ""
    """Of a process that runs one stage; empty: it does not. Under `headrace run` it is `run`'s own, and its processes have
    the ports behind it: the relay the next, the edge the second, appliers the third and on."""
    relay: Address = ""
    """The relay's, in place of that."""
    applier: Address = ""
    """The appliers', in place of that: of the first on this machine; the others have the ports behind it."""
    edge: Address = ""
    """The edge's, in place of that."""
    audit: Address = ""
    """The audit's, in place of that."""

    def address(self, stage: Literal["run", "relay", "applier", "edge", "audit"], number: int = 1) -> tuple[str, int] | None:
        """Host and port of a process of this stage, the `number`th on this machine; None: it does not answer."""
        own = "" if stage == "run" else getattr(self, stage)
        if not own and not self.listen:
            return None
        return _address(own, number - 1) if own else _address(self.listen, 0)

    def behind(self, place: int) -> str:
        """`listen` of a process that `run` starts; empty without."""
        if not self.listen:
            return ""
        return host_and_port(*_address(self.listen, place))


METRICS_OFF: Final = {f"{PREFIX}METRICS_{name.upper()}": "" for name in MetricsConfig.__struct_fields__}
"""The environment of processes that work for a while beside those that are asked, whose addresses they must not take."""


def host_and_port(host: str, port: int) -> str:
    """As a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(text: str, further: int) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port) + further


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything."""

    source: SourceConfig = SourceConfig()
    tenancy: list[Rule] = []
    placement: Placement = Placement()
    log: LogConfig = LogConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    apply: ApplyConfig = ApplyConfig()
    snapshots: SnapshotsConfig = SnapshotsConfig()
    columns: list[ColumnConfig] = []
    run: RunConfig = RunConfig()
    edge: EdgeConfig = EdgeConfig()
    metrics: MetricsConfig = MetricsConfig()

    def __post_init__(self) -> None:
        # ValueError: msgspec turns it into a ValidationError that names the file
        if self.apply.group and self.log.kind != "kafka":
            raise ValueError('`apply.group` needs a log with groups: set `log.kind = "kafka"`, or leave it out')
        if self.edge.route != "off" and not (self.edge.advertise and self.snapshots.url):
            raise ValueError("`edge.route` needs to know who owns what: set `edge.advertise` and `snapshots.url`")
        if wrong := misfit(self.placement, self.tenancy):
            raise ValueError(f"`tenancy` and `placement` do not fit: {wrong}")

    def instance(self) -> str:
        """The name of an applier of this machine in the group."""
        return self.apply.instance or re.sub("[^A-Za-z0-9._-]", "-", socket.gethostname())[:200]

    def dsn(self) -> str:
        """The connection string, wherever it comes from. Raises ConfigError when there is none."""
        dsn, name = self.source.dsn, self.source.dsn_file
        if name:
            try:
                dsn = Path(name).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"source.dsn_file cannot be read: {_reason(error)}", hint="Correct `source.dsn_file`."
                ) from None
        if not dsn:
            raise ConfigError(
                f"{name} is empty" if name else "No connection string for Postgres",
                hint="Set `dsn` under `[source]` in headrace.toml, or HEADRACE_SOURCE_DSN, or name a file that holds it: "
                "`dsn_file`.",
            )
        return dsn

    def overrides(self) -> dict[str, As]:
        """`schema.table.column` -> how to store it."""
        return {column.column: column.as_ for column in self.columns}


def load(path: Path | None, environment: Mapping[str, str] | None = None) -> Config:
    """The configuration of a file (None: headrace.toml if it is there) under the environment. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    if path is None and Path(DEFAULT_FILE).exists():
        path = Path(DEFAULT_FILE)
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {_reason(error)}", hint="Name it with --config.") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}", hint="Correct that line.") from None
    used = _overlay(given, environment)
    try:
        return msgspec.convert(given, Config, strict=False)
    except msgspec.ValidationError as error:
        where = " and ".join([*([str(path)] if path else []), *used]) or "the configuration"
        raise ConfigError(f"{where}: {error}", hint="docs/configuration.md lists every key.") from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read; never a byte of it."""
    return (error.strerror or "") if isinstance(error, OSError) else "not UTF-8 text"


def _overlay(given: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Write HEADRACE_<SECTION>_<KEY> into the tables; answers the names that were used."""
    used = []
    for section in Config.__struct_fields__:
        start = f"{PREFIX}{section.upper()}_"
        for name, value in sorted(environment.items()):
            if not name.startswith(start):
                continue
            if section in ("tenancy", "columns"):
                raise ConfigError(f"{name}: `{section}` is a list of tables", hint="It can be set in the file only.")
            table = given.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"`{section}` is not a table", hint=f"Write it as [{section}].")
            table[name.removeprefix(start).lower()] = value
            used.append(name)
    return used
