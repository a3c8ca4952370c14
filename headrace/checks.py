"""`headrace check` and `headrace setup`: what is wrong with source, tables and log, and the part that we can put right.

check reads only. setup runs statements on the source, each of which it shows: the publication, with `identity` the
replica identities that check asks for, with `ddl_trigger` the event trigger. It never publishes a table without an
identity, as Postgres would from that moment refuse the application's UPDATEs and DELETEs (cases.md T30). The slot is the
relay's to make, at its first start: the first copy reads the snapshot that only making the slot exports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import psycopg
from psycopg import sql
from rich.markup import escape

from cdc.connection import connect, describe_dsn, translated
from cdc.ddl_trigger import INSTALL_TITLE, REMOVE, TriggerState, inspect_trigger, install_statements
from cdc.errors import HeadraceError, SlotInUse
from cdc.inspection import Publication, Source, Table, find_publication, inspect_source, read_tables
from cdc.preflight import OPERATIONS, Finding, Severity, error, identifier, ok, source_findings
from cdc.publication import add_tables, create_publication, set_tables
from cdc.row_filters import note_filters, read_filters
from cdc.slot import SlotState, inspect_slot
from fanout.errors import LogMissing, PartitionCountChanged, TenantColumnMissing
from fanout.log import open_reader
from fanout.preflight import filters_unfit, identity_statements, row_filters, table_findings, told_columns, wanted_tables
from fanout.resume import LogState, Resume, decide, read_tail
from fanout.tenancy import Tenancy
from headrace import output
from headrace.config import Config
from headrace.errors import CommandError
from headrace.snapshot_check import snapshot_findings

_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.OK: "green"}
_LOCK_TIMEOUT = "5s"
"""A statement that waits for a table's lock lets nobody else in meanwhile."""

_PROVIDERS = ("rds_superuser", "cloudsqlsuperuser", "azure_pg_admin", "neon_superuser", "supabase_privileged_role")
"""Roles that managed services let make event triggers."""

_MAY_MAKE_TRIGGERS = """
select current_setting('is_superuser') = 'on'
       or exists (select from pg_roles r where r.rolname = any(%s) and pg_has_role(r.oid, 'member'))
"""

_LATE = "Rows that these tables hold already are copied by `headrace relay --new-generation` only."


class Report(msgspec.Struct, frozen=True):
    """The answer of `headrace check`."""

    source: str
    findings: list[Finding]
    errors: int
    warnings: int


def check(config: Config) -> Report:
    """Every finding on source, tables and log; what cannot be reached is one. Raises ConfigError, SourceMisconfigured."""
    described = describe_dsn(config.dsn())
    findings = list(_findings(config))
    severities = [finding.severity for finding in findings]
    return Report(described, findings, severities.count(Severity.ERROR), severities.count(Severity.WARNING))


def _findings(config: Config) -> Iterator[Finding]:
    source: Source | None = None
    try:
        source = inspect_source(config.dsn(), config.source.slot, config.source.publication)
    except HeadraceError as failure:
        yield error("connection", str(failure), failure.hint)
    else:
        tenancy, placement = Tenancy(config.tenancy), config.placement
        published = tuple(table for table in source.tables if table.published)
        yield from source_findings(source, published or wanted_tables(tenancy, source.tables, placement))
        told = source.trigger is TriggerState.CURRENT
        yield from table_findings(
            config.tenancy, source.tables, partitions_told=told, placement=placement, filters=source.filters
        )
    state: LogState | None = None
    try:
        state = _log_state(config)
    except HeadraceError as failure:
        yield error("log", str(failure), failure.hint)
    else:
        yield ok("log", "not made yet: the relay does it" if state is None else f"{config.log.partitions} partitions")
        if source is not None and source.system is not None:
            yield _start(state or LogState(), source)
        if state is not None:
            yield from snapshot_findings(config)


def _log_state(config: Config) -> LogState | None:
    """What the log holds; None when there is none yet. Raises LogError."""
    try:
        reader = open_reader(config.log)
    except LogMissing:
        return None
    with reader:
        if reader.partitions != config.log.partitions:
            raise PartitionCountChanged(
                f"The log has {reader.partitions} partitions, the configuration says {config.log.partitions}"
            )
        return read_tail(reader)


def _start(state: LogState, source: Source) -> Finding:
    """What a relay that starts now would do: as it decides itself."""
    assert source.system is not None
    try:
        start = decide(state, source.slot, source.system)
    except SlotInUse:
        return ok("start", "the relay is running")
    except HeadraceError as failure:
        return error("start", str(failure), failure.hint)
    if isinstance(start, Resume):
        return ok("start", "the relay would go on from where the slot is")
    return ok("start", "the relay would make the slot and copy every table")


def show_report(report: Report) -> None:
    """The findings as lines in colour, errors last, where the eye is; then one sentence."""
    out = output.out
    warnings = _count(report.warnings, "warning")
    out.print(f"[dim]{escape(report.source)}[/]")
    order = [Severity.OK, Severity.WARNING, Severity.ERROR]
    for finding in sorted(report.findings, key=lambda finding: order.index(finding.severity)):
        colour = _COLOURS[finding.severity]
        out.print(f"[{colour}]{finding.severity.value:>7}[/]  [bold]{escape(finding.check)}[/]  {escape(finding.message)}")
        if finding.fix:
            out.print(f"         [cyan]{escape(finding.fix)}[/]")
    if report.errors:
        out.print(f"[bold red]{_count(report.errors, 'error')}[/] and {warnings}: not ready yet.")
    else:
        out.print(f"[bold green]Ready[/], with {warnings}. Next: `headrace setup`, `headrace run`.")


class Step(msgspec.Struct, frozen=True):
    """A statement of `headrace setup`. `note`: what it leaves to be done."""

    sql: str
    note: str = ""
    title: str = ""
    """What to show in its place where it is long."""


def setup(config: Config, *, identity: bool, ddl_trigger: bool = False, dry_run: bool) -> Iterator[Step]:
    """Run what is missing; each step is answered after it ran. Raises SourceError, CommandError, before any or between."""
    with connect(config.dsn(), application_name="headrace-setup") as conn, translated():
        conn.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
        steps = _steps(conn, config, identity=identity)
        if ddl_trigger:
            steps += _trigger_steps(conn, config.source.publication)
        for step in steps:
            if not dry_run:
                conn.execute(step.sql.encode())
            yield step


def _trigger_steps(conn: psycopg.Connection[tuple[object, ...]], publication: str) -> list[Step]:
    state = inspect_trigger(conn, publication)
    row = conn.execute(
        "select current_setting('is_superuser') = 'on' or exists (select from pg_roles r where r.rolname = any(%s)"
        " and pg_has_role(r.oid, 'member'))",
        (list(_PROVIDERS),),
    ).fetchone()
    statements = install_statements(state, publication)
    if statements and not (row and row[0]):
        raise CommandError(
            "Nothing was changed: only a superuser, or what a provider has in its place, may make an event trigger",
            hint="Run it as one: `HEADRACE_SOURCE_DSN=postgresql://postgres@... headrace setup --ddl-trigger`.",
        )
    return [Step(statement, title=INSTALL_TITLE if len(statement) > 1000 else "") for statement in statements]


def remove_trigger(config: Config, *, dry_run: bool) -> Iterator[Step]:
    """Take the event trigger out; each step is answered after it ran. Raises SourceError."""
    with connect(config.dsn(), application_name="headrace-setup") as conn, translated():
        if inspect_trigger(conn, config.source.publication) is TriggerState.MISSING:
            return
        if not dry_run:
            conn.execute(REMOVE.encode())
        yield Step(REMOVE)


def show_steps(steps: Iterable[Step], *, dry_run: bool) -> None:
    """Each statement as it has run."""
    count = 0
    for step in steps:
        count += 1
        output.out.print(f"[cyan]{escape(step.title or step.sql)}[/]")
        if step.note:
            output.out.print(f"[yellow]{escape(step.note)}[/]")
    what = "would run" if dry_run else "ran"
    output.out.print(f"{_count(count, 'statement')} {what}." if count else "All is set up: nothing to run.")


def _steps(conn: psycopg.Connection[tuple[object, ...]], config: Config, *, identity: bool) -> list[Step]:
    name = config.source.publication
    tenancy = Tenancy(config.tenancy)
    tables = read_tables(conn, name)
    wanted = wanted_tables(tenancy, tables, config.placement)
    _require_columns(wanted, tenancy)
    repairs = [sql for table in wanted for sql in identity_statements(table, told_columns(table, tenancy))]
    if repairs and not identity:
        raise CommandError(
            "Nothing was changed: old rows of some tables would not tell their tenant, or have no replica identity at "
            "all, and publishing those would make Postgres refuse the application's UPDATEs and DELETEs",
            hint=f"`headrace setup --identity` runs: {' '.join(repairs)}",
        )
    steps = [Step(repair) for repair in repairs]
    found = find_publication(conn, name)
    if config.placement:
        steps += _filter_steps(conn, config, tenancy, tables, wanted, found)
    elif found is None:
        names = [(table.schema, table.table) for table in wanted]
        made = create_publication(name, names, server_version=conn.info.server_version)
        steps.append(Step(made.as_string(conn)))
    new = [(table.schema, table.table) for table in wanted if not table.published]
    if found is None:
        return steps
    if new and not found.all_tables and not config.placement:
        streamed = inspect_slot(conn, config.source.slot).state is not SlotState.MISSING
        steps.append(Step(add_tables(name, new).as_string(conn), _LATE if streamed else ""))
    if not found.via_root or set(found.operations) != set(OPERATIONS):
        options = f"publish = '{', '.join(OPERATIONS)}', publish_via_partition_root = true"
        steps.append(Step(f"alter publication {identifier(name)} set ({options})"))
    return steps


def _filter_steps(
    conn: psycopg.Connection[tuple[object, ...]],
    config: Config,
    tenancy: Tenancy,
    tables: list[Table],
    wanted: list[Table],
    found: Publication | None,
) -> list[Step]:
    """What gives the publication the row filters of `[placement]`, with the note of it, in one transaction."""
    name = config.source.publication
    if found is not None and found.all_tables:
        raise CommandError(
            "Nothing was changed: a publication FOR ALL TABLES has no row filters",
            hint=f"drop publication {identifier(name)}; -- with the relay stopped; then `headrace setup`",
        )
    conditions = row_filters(tenancy, wanted, config.placement)
    names = [(table.schema, table.table) for table in wanted]
    if found is None:
        made = create_publication(name, names, server_version=conn.info.server_version, conditions=conditions)
    else:
        unfit = [*filters_unfit(tenancy, tables, config.placement, read_filters(conn, name))]
        if not unfit and all(table.published for table in wanted):
            return []
        lists = {(t.schema, t.table): t.published_columns for t in wanted if _has_column_list(t)}
        made = set_tables(name, names, conditions, lists)
    note = note_filters(name, conditions)
    return [Step(f"{made.as_string(conn)}; {note.as_string(conn)}", title=f"{made.as_string(conn)}; -- and a comment on it")]


def _has_column_list(table: Table) -> bool:
    return table.published and not set(table.columns) - set(table.generated) <= set(table.published_columns)


def _require_columns(wanted: list[Table], tenancy: Tenancy) -> None:
    if not wanted:
        raise CommandError(
            "No tenancy rule asks for a table of this database",
            hint='Add `[[tenancy]]` with `table = "public.*"` and `column = "tenant_id"`, or what fits, to headrace.toml.',
        )
    for table in wanted:
        for column in told_columns(table, tenancy):
            if column not in table.columns:
                raise TenantColumnMissing(f"The tenancy rule's column `{column}` is not in the table", relation=table.name)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}" + ("" if number == 1 else "s")
