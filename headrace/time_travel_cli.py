"""The commands of `headrace time-travel`: options, and nothing else. What they do: `headrace.time_travel`."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace import output
from headrace.config import load
from headrace.options import ConfigOption, JsonOption

app = typer.Typer(no_args_is_help=True, help="Take one tenant back to any of its transactions, others untouched.")

Tenant = Annotated[str, typer.Argument(help="The tenant's id.")]
Timestamp = Annotated[str, typer.Option(help="ISO 8601, Unix seconds, or an age such as 10m: the last commit before it.")]
Bookmark = Annotated[str, typer.Option(help="As `info` and `restore` print them.")]
Lsn = Annotated[str, typer.Option(help="An LSN, in the newest generation or as 2:0/16B3748.")]


@app.command()
def info(
    tenant: Tenant,
    timestamp: Timestamp = "",
    bookmark: Bookmark = "",
    lsn: Lsn = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the bookmark of a time or of now, what readers get, and how far back the tenant can be taken."""
    from headrace import time_travel

    found = time_travel.info(load(config), tenant, time_travel.Wanted(timestamp, bookmark, lsn))
    if as_json:
        output.print_json(found)
    else:
        time_travel.show_info(found)


@app.command()
def restore(
    tenant: Tenant,
    timestamp: Timestamp = "",
    bookmark: Bookmark = "",
    lsn: Lsn = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the tenant as of a time, a bookmark or an LSN; its live replica goes on beside it."""
    from headrace import time_travel

    done = time_travel.restore(load(config), tenant, time_travel.Wanted(timestamp, bookmark, lsn))
    if as_json:
        output.print_json(done)
    else:
        time_travel.show_restored(done, tenant)


@app.command()
def undo(tenant: Tenant, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Serve again what was served before the last restore, undo or resume."""
    from headrace import time_travel

    done = time_travel.undo(load(config), tenant)
    if as_json:
        output.print_json(done)
    else:
        time_travel.show_restored(done, tenant)


@app.command()
def resume(tenant: Tenant, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Serve the live replica, at once."""
    from headrace import time_travel

    done = time_travel.resume(load(config), tenant)
    if as_json:
        output.print_json(done)
    else:
        time_travel.show_restored(done, tenant)


@app.command()
def clone(
    tenant: Tenant,
    name: Annotated[str, typer.Argument(help="What the clone is called: no tenant's id.")],
    timestamp: Timestamp = "",
    bookmark: Bookmark = "",
    lsn: Lsn = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a read-only database of its own, as of a time, a bookmark or an LSN; of now without any."""
    from headrace import time_travel

    done = time_travel.clone(load(config), tenant, name, time_travel.Wanted(timestamp, bookmark, lsn))
    if as_json:
        output.print_json(done)
    else:
        time_travel.show_cloned(done)


@app.command()
def unclone(name: Annotated[str, typer.Argument(help="The clone.")], config: ConfigOption = None) -> None:
    """Remove a clone."""
    from headrace import time_travel

    time_travel.unclone(load(config), name)


@app.command()
def diff(
    tenant: Tenant,
    before: Annotated[str, typer.Argument(help="A bookmark, an LSN, or a time.")],
    after: Annotated[str, typer.Argument(help="Another; without it, now.")] = "",
    sql: Annotated[bool, typer.Option("--sql", help="Print SQL that brings the rows in Postgres back.")] = False,
    empty_new_tables: Annotated[
        bool, typer.Option(help="With --sql: also delete the tenant's rows of tables that were not there then.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what changed for the tenant between two places; as SQL, a recovery of its rows in the shared Postgres."""
    from headrace import time_travel

    if sql:
        made = time_travel.recovery(load(config), tenant, before, after, empty_new_tables=empty_new_tables)
        if as_json:
            output.print_json(made)
        else:
            time_travel.show_recovery(made)
        return
    found = time_travel.diff(load(config), tenant, before, after)
    if as_json:
        output.print_json(found)
    else:
        time_travel.show_diff(found)


@app.command()
def history(
    tenant: Tenant,
    table: Annotated[str, typer.Argument(help="The table, as the replica calls it.")],
    key: Annotated[list[str], typer.Argument(help="The row's primary key, as column=value; not the tenant's.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every version of one row, with the transaction that made it."""
    from headrace import time_travel

    found = time_travel.history(load(config), tenant, table, key)
    if as_json:
        output.print_json(found)
    else:
        time_travel.show_history(found)
