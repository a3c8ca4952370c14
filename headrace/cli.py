"""The command line. Each command reads the configuration, calls one function of the stage it belongs to, and shows the
answer: as tables for people, as one JSON document with --json. Errors are one paragraph with the fix; exit codes: 0 well,
1 error, 2 usage, 75 worth trying again.
"""

from __future__ import annotations

import enum
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from appliers.assignment import Share
from cdc.errors import HeadraceError
from headrace import output, time_travel_cli, token_cli
from headrace.config import load
from headrace.options import ConfigOption, JsonOption

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="One shared, multi-tenant Postgres in; one SQLite database per tenant out.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.out.print(f"headrace {importlib.metadata.version('headrace')}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


class LogLevel(enum.StrEnum):
    """From the most to the least."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogLevelOption = Annotated[LogLevel, typer.Option(help="What is written to standard error.")]


@app.command()
def relay(
    config: ConfigOption = None,
    new_generation: Annotated[
        bool, typer.Option("--new-generation", help="Make a new slot and copy everything afresh.")
    ] = False,
    keep_replicas: Annotated[
        bool, typer.Option("--keep-replicas", help="Make a new slot and copy nothing; `headrace recover` does the rest.")
    ] = False,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Read the slot and publish each tenant's transactions to the log."""
    from headrace.stages import run_relay

    if new_generation and keep_replicas:
        raise typer.BadParameter("--new-generation or --keep-replicas")
    output.configure_logging(level=log_level, stage="relay")
    run_relay(load(config), new_generation=new_generation, keep=keep_replicas)


@app.command()
def applier(
    config: ConfigOption = None,
    share: Annotated[
        str | None, typer.Option(help="Which share of the partitions: number/count. Without, all.", show_default=False)
    ] = None,
    instance: Annotated[
        str | None, typer.Option(help="With `apply.group`: the name in the group, in place of `apply.instance`.")
    ] = None,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Apply the log to the replicas of a share of the partitions, or of those that the group gives."""
    from headrace.stages import run_applier, run_member

    output.configure_logging(level=log_level, stage="applier")
    loaded = load(config)
    if loaded.apply.group and share is not None:
        raise typer.BadParameter("with `apply.group` the group gives the partitions", param_hint="--share")
    if not loaded.apply.group and instance is not None:
        raise typer.BadParameter("only members of a group have a name: set `apply.group`", param_hint="--instance")
    if loaded.apply.group:
        if instance is not None and not re.fullmatch("[A-Za-z0-9._-]{1,200}", instance):
            raise typer.BadParameter("letters, digits, `.`, `_` and `-` only", param_hint="--instance")
        run_member(loaded, instance or loaded.instance())
        return
    try:
        parsed = Share.parse(share or "1/1")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    run_applier(loaded, parsed)


@app.command()
def run(
    config: ConfigOption = None,
    stop_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that relay and appliers each have to stop in order.")
    ] = 20.0,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Run relay and appliers on this machine, with `edge.enabled` also the HTTP API, and start again what dies."""
    from headrace.run_command import run_all

    output.configure_logging(level=log_level, stage="supervisor")
    run_all(load(config), config, log_level, stop_s=stop_timeout)


@app.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say what stands in the way, in source, tables and log, each with its fix. Exit code 1 when anything does."""
    from headrace.checks import check, show_report

    report = check(load(config))
    if as_json:
        output.print_json(report)
    else:
        show_report(report)
    if report.errors:
        raise typer.Exit(output.EXIT_ERROR)


@app.command()
def setup(
    config: ConfigOption = None,
    identity: Annotated[
        bool,
        typer.Option("--identity", help="Also alter the replica identities that `check` asks for: takes short locks."),
    ] = False,
    ddl_trigger: Annotated[
        bool,
        typer.Option(
            "--ddl-trigger",
            help="Also install the event trigger with which schema changes arrive exactly. Takes a superuser,"
            " or what a provider has in its place.",
        ),
    ] = False,
    remove: Annotated[bool, typer.Option("--remove-ddl-trigger", help="Only take the event trigger out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the statements, run none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Create the publication for the tables that the tenancy rules ask for, or add those that are missing from it.

    The replication slot is made by `headrace relay` at its first start, as the first copy reads the snapshot that comes
    with making it.
    """
    from headrace.checks import remove_trigger, setup, show_steps

    if remove:
        steps = remove_trigger(load(config), dry_run=dry_run)
    else:
        steps = setup(load(config), identity=identity, ddl_trigger=ddl_trigger, dry_run=dry_run)
    if as_json:
        output.print_json(list(steps))
    else:
        show_steps(steps, dry_run=dry_run)


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show source, log, processes and replicas. Exit code 1 when something needs a person, and says what."""
    from headrace.status import collect
    from headrace.views import show_status

    found = collect(load(config))
    if as_json:
        output.print_json(found)
    else:
        show_status(found)
    if found.problems:
        raise typer.Exit(output.EXIT_ERROR)


@app.command()
def lag(
    config: ConfigOption = None,
    partition: Annotated[list[int] | None, typer.Option(min=0, help="Only this one; may be given again.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many partitions, the most behind first.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how far log and replicas are behind Postgres, partition by partition."""
    from headrace.lag import Probe, most_behind
    from headrace.views import lag_view, watch_lag

    with Probe(load(config), partition) as probe:
        if watch:
            watch_lag(lambda: most_behind(probe.measure(), top), as_json=as_json)
        elif as_json:
            output.print_json(most_behind(probe.measure(), top))
        else:
            output.out.print(lag_view(most_behind(probe.measure(), top)))


@app.command()
def tail(
    config: ConfigOption = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's records.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="OFFSET|LSN|TIME|beginning|end", help="Where to begin, instead of the last records."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="2026-01-31T12:00:00Z, or an age: 90s, 10m, 2h, 1d.")
    ] = None,
    until: Annotated[
        str, typer.Option(metavar="OFFSET|LSN|TIME|end", help="Where to end, with what is there; as --from.")
    ] = "end",
    table: Annotated[str | None, typer.Option(help="Only records about this table, by its name in replicas.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only records of this kind, such as changes; may be given again.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="The last N records, 20 by default; with a start, the first N."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    progress: Annotated[bool, typer.Option("--progress", help="Also the relay's progress records, one a second.")] = False,
    rows: Annotated[bool, typer.Option("--rows", help="With --json: the rows themselves, with their values.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line; errors as JSON too.")] = False,
) -> None:
    """Show records of the log, a line each, without the values of rows."""
    from headrace.places import AtTime, parse_place, parse_time_us
    from headrace.records import KINDS
    from headrace.tail import Filter, Request, run_tail

    if rows and not as_json:
        raise typer.BadParameter("rows are shown as JSON only: add --json", param_hint="--rows")
    if start is not None and since is not None:
        raise typer.BadParameter("give one of --from and --since", param_hint="--since")
    if follow and until != "end":
        raise typer.BadParameter("what is followed has no end: give one of --follow and --until", param_hint="--until")
    if unknown := set(kind or ()) - KINDS:
        raise typer.BadParameter(
            f"no kind is called {min(unknown)}; there are {', '.join(sorted(KINDS))}", param_hint="--kind"
        )
    try:
        request = Request(
            filter=Filter(tenant=tenant, partition=partition, progress=progress, table=table, kinds=frozenset(kind or ())),
            start=AtTime(parse_time_us(since)) if since is not None else None if start is None else parse_place(start),
            until=parse_place(until),
            limit=limit,
            follow=follow,
            rows=rows,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    run_tail(load(config), request, as_json=as_json)


@app.command()
def replay(
    config: ConfigOption = None,
    into: Annotated[
        Path | None, typer.Option("--into", help="A new directory, or one of replicas that no applier runs on.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Onto the configured replicas instead; no applier may run on them.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="OFFSET|LSN|TIME|beginning", help="Where to begin; by default where it is right."),
    ] = None,
    until: Annotated[
        str, typer.Option(metavar="OFFSET|LSN|TIME|end", help="Everything that committed at or before it, and no more.")
    ] = "end",
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Build replicas from the log alone, as of any point it holds. Postgres may be down."""
    from headrace.places import parse_place
    from headrace.replay import Wanted, replay, show_replayed

    if (into is None) != live:
        raise typer.BadParameter("say where to: --into DIR, or --live", param_hint="--into")
    if tenant is not None and partition is not None:
        raise typer.BadParameter("a tenant is in one partition: give only one of them", param_hint="--partition")
    try:
        wanted = Wanted(
            into=into,
            start=None if start is None else parse_place(start),
            until=parse_place(until),
            tenant=tenant,
            partition=partition,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    output.configure_logging(level=LogLevel.WARNING, stage="replay")
    done = replay(load(config), wanted)
    if as_json:
        output.print_json(done)
    else:
        show_replayed(done)
    if done.quarantined:
        raise typer.Exit(output.EXIT_ERROR)


@app.command()
def verify(
    tenants: Annotated[
        list[str] | None, typer.Argument(help="Tenants' ids; without any, all replicas that are here.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="The replica of the shared tables.")] = False,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Only so many tenants, drawn at random.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Most differences that are shown of a replica.")] = 100,
    repair: Annotated[bool, typer.Option("--repair", help="Have what differs brought again, and look once more.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --repair: only say what would be brought.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="With --repair: longest wait, in seconds.")] = 3600.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare replicas with Postgres as of one LSN, row by row where they differ. Exit code 1 when any does (still)."""
    from headrace.repair import repair as run_repair
    from headrace.repair import show_repaired
    from headrace.verify import Wanted, show_verified
    from headrace.verify import verify as run_verify

    if (tenants or shared) and (partition is not None or sample is not None):
        raise typer.BadParameter("name tenants, or choose them by --partition and --sample")
    output.configure_logging(level=LogLevel.WARNING, stage="verify")
    wanted = Wanted(tenants=tuple(tenants or ()), shared=shared, partition=partition, sample=sample, limit=limit)
    if repair:
        repaired = run_repair(load(config), wanted, dry_run=dry_run, timeout_s=timeout)
        if as_json:
            output.print_json(repaired)
        else:
            show_repaired(repaired)
        done = repaired.after or repaired.found
    else:
        done, _ = run_verify(load(config), wanted)
        if as_json:
            output.print_json(done)
        else:
            show_verified(done)
    if done.differ:
        raise typer.Exit(output.EXIT_ERROR)


@app.command()
def audit(
    every: Annotated[float, typer.Option(min=0, help="Seconds from the begin of one round to that of the next.")] = 600.0,
    sample: Annotated[int, typer.Option(min=1, help="Tenants of a round, drawn at random.")] = 500,
    rate: Annotated[float, typer.Option(min=1, help="Rows a second that are compared, at most.")] = 20_000.0,
    config: ConfigOption = None,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Compare replicas with Postgres in the background, over and over; `headrace status` tells what differs."""
    from headrace.audit import run_audit

    output.configure_logging(level=log_level, stage="audit")
    run_audit(load(config), every_s=every, sample=sample, rate=rate)


@app.command()
def resync(
    tenants: Annotated[list[str] | None, typer.Argument(help="Tenants' ids.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="All tenants of this partition that are here.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until the replicas are there.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Longest wait, in seconds.")] = 3600.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make tenants' replicas anew from Postgres, in new files; readers have the old ones until then."""
    from headrace.resync import resync as run_resync
    from headrace.resync import show_resynced

    if bool(tenants) == (partition is not None):
        raise typer.BadParameter("name tenants, or a --partition")
    output.configure_logging(level=LogLevel.WARNING, stage="resync")
    done = run_resync(load(config), tenants or (), partition=partition, wait_s=timeout if wait else None)
    if as_json:
        output.print_json(done)
    else:
        show_resynced(done)


@app.command()
def recover(
    timeout: Annotated[float, typer.Option(min=0, help="Longest wait for what was asked for, in seconds.")] = 3600.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """After the slot was lost: make a new one, and bring just what differs; replicas are read meanwhile."""
    from headrace.recover import recover as run_recover
    from headrace.recover import show_recovered

    output.configure_logging(level=LogLevel.WARNING, stage="recover")
    done = run_recover(load(config), config, timeout_s=timeout)
    if as_json:
        output.print_json(done)
    else:
        show_recovered(done)


app.add_typer(time_travel_cli.app, name="time-travel")
app.add_typer(token_cli.app, name="token")


@app.command()
def edge(config: ConfigOption = None, log_level: LogLevelOption = LogLevel.INFO) -> None:
    """Serve the replicas of this machine over HTTP, in the shape of Cloudflare D1's API."""
    from headrace.edge_command import run_edge

    output.configure_logging(level=log_level, stage="edge")
    run_edge(load(config), log_level)


@app.command()
def usage(
    since: Annotated[str, typer.Option(metavar="AGE", help="How far back: 90s, 15m, 12h, 30d.")] = "24h",
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    by_hour: Annotated[bool, typer.Option("--by-hour", help="A line for each hour of a tenant.")] = False,
    top: Annotated[int, typer.Option(min=0, help="How many statements to show, those that took most time first.")] = 10,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what tenants asked over HTTP, what it read, and what that would cost at D1's prices."""
    from headrace.places import parse_age_s
    from headrace.usage_command import report, show_report

    try:
        since_s = parse_age_s(since)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    done = report(load(config), since_s, tenant=tenant, by_hour=by_hour, top=top)
    if as_json:
        output.print_json(done)
    else:
        show_report(done)


tenant_app = typer.Typer(no_args_is_help=True, help="Show the tenants' replicas, and let those go on that stopped.")
app.add_typer(tenant_app, name="tenant")


@tenant_app.command("list")
def tenant_list(
    config: ConfigOption = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Only those that stopped.")] = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Also each one's position; opens every file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the tenants that have a replica here."""
    from headrace.tenants import list_tenants
    from headrace.views import show_tenants

    root = Path(load(config).replicas.path)
    tenants = list_tenants(root, partition=partition, only_quarantined=quarantined, long=long)
    if as_json:
        output.print_json(tenants)
    else:
        show_tenants(tenants, long=long)


@tenant_app.command("info")
def tenant_info(
    tenant: Annotated[str | None, typer.Argument(help="The tenant's id.")] = None,
    shared: Annotated[bool, typer.Option("--shared", help="The replica of the shared tables instead.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one tenant's replica: where it is, how far it is, what is in it, and why it stopped if it did."""
    from headrace.tenants import describe
    from headrace.views import show_tenant

    if (tenant is None) != shared:
        raise typer.BadParameter("give a tenant, or --shared")
    detail = describe(Path(load(config).replicas.path), tenant)
    if as_json:
        output.print_json(detail)
    else:
        show_tenant(detail)


@tenant_app.command("create")
def tenant_create(
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    timeout: Annotated[float, typer.Option(min=0, help="Longest wait, in seconds.")] = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a tenant's replica be there before its first row, whole and empty."""
    from headrace.resync import resync as run_resync
    from headrace.resync import show_resynced

    done = run_resync(load(config), [tenant], partition=None, wait_s=timeout)
    if as_json:
        output.print_json(done)
    else:
        show_resynced(done)


@tenant_app.command("delete")
def tenant_delete(
    tenant: Annotated[str, typer.Argument(help="The tenant's id; Postgres must have no row of it any more.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is erased.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Longest wait, in seconds.")] = 600.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase what is left of a tenant that has no rows any more, in its file and in snapshots, and prove it."""
    from headrace.lifecycle import delete, show_deleted

    done = delete(load(config), tenant, wait_s=timeout if wait else None)
    if as_json:
        output.print_json(done)
    else:
        show_deleted(done)


class ExportFormat(enum.StrEnum):
    """Of `tenant export`."""

    SQLITE = "sqlite"
    SQL = "sql"


@tenant_app.command("export")
def tenant_export(
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    path: Annotated[Path, typer.Argument(help="The file to write; it must not be there.")],
    form: Annotated[
        ExportFormat, typer.Option("--format", help="An SQLite database, or SQL that makes it.")
    ] = ExportFormat.SQLITE,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a tenant's tables, as of one commit, into a plain file; the applier goes on meanwhile."""
    from headrace.lifecycle import export

    done = export(load(config), tenant, path, form.value)
    if as_json:
        output.print_json(done)
    else:
        output.out.print(f"{done.path}: tenant {done.tenant} as of {done.lsn}, {done.bytes:,} bytes")


@tenant_app.command("release")
def tenant_release(
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a quarantined tenant try again from where it stopped, and go on, while others' records flow."""
    _ask(config, tenant, "release", None, as_json=as_json)


@tenant_app.command("skip")
def tenant_skip(
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    position: Annotated[str, typer.Argument(help="Of the record it stopped at, as `tenant info` shows it.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a quarantined tenant go on without the rows of the transaction it stopped at, which its replica then lacks."""
    _ask(config, tenant, "skip", position, as_json=as_json)


def _ask(
    config: Path | None, tenant: str, action: Literal["release", "skip"], position: str | None, *, as_json: bool
) -> None:
    from headrace.quarantine import ask
    from headrace.views import show_asked

    asked = ask(Path(load(config).replicas.path), tenant, action, position)
    if as_json:
        output.print_json(asked)
    else:
        show_asked(asked)


@tenant_app.command("history")
def tenant_history(
    tenant: Annotated[str | None, typer.Argument(help="The tenant's id; without it, of all.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the audit trail: which tenants stopped and why, who asked for what, and what came of it."""
    from headrace.quarantine import history
    from headrace.views import show_history

    happened = history(Path(load(config).replicas.path), tenant)
    if as_json:
        output.print_json(happened)
    else:
        show_history(happened)


@app.command()
def dashboard(
    tenant: Annotated[list[str] | None, typer.Option(help="Only this tenant; may be given again. Without, all.")] = None,
    expires: Annotated[
        str, typer.Option(metavar="AGE", help="How long the address is good for: 15m, 12h; a day at most.")
    ] = "1h",
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the desktop's browser, too.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the address of the dashboard that `headrace edge` serves, with a token that only reads and soon expires."""
    from headrace.dashboard.link import link, open_browser, show_link
    from headrace.places import parse_age_s

    try:
        lifetime_s = int(parse_age_s(expires))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--expires") from None
    made = link(load(config), lifetime_s, tenant or ())
    if as_json:
        output.print_json(made)
    else:
        show_link(made)
    if open_it:
        open_browser(made.url)


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(min=1, help="End by itself after so long; without, on Ctrl-C.")] = None,
    tenants: Annotated[int, typer.Option(min=1, max=5000, help="How many tenants to make.")] = 100,
    rate: Annotated[float, typer.Option(min=0.1, max=5000, help="Transactions a second to write.")] = 200,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where everything is kept.", show_default=".headrace/demo")
    ] = None,
    kafka: Annotated[str, typer.Option(help="Brokers, to use Kafka in place of the embedded log.")] = "",
) -> None:
    """Show live replication: a Postgres of its own, sample traffic, a replica for each tenant, compared at the end."""
    from headrace.demo.app import DemoOptions, run_demo

    directory = directory or Path(".headrace/demo-kafka" if kafka else ".headrace/demo")
    options = DemoOptions(directory=directory, seconds=seconds, tenants=tenants, rate=rate, kafka=kafka)
    raise typer.Exit(run_demo(options))


def main() -> None:
    """The entry point."""
    as_json = "--json" in sys.argv
    try:
        app()
    except HeadraceError as error:
        sys.exit(output.print_error(error, as_json=as_json))


if __name__ == "__main__":
    main()
