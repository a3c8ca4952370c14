"""The commands of `headrace token`: options, and nothing else. What they do: `headrace.token_command`."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from headrace import output
from headrace.config import load
from headrace.options import ConfigOption, JsonOption

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens of the HTTP API.")


class TokenScope(enum.StrEnum):
    """What a token allows."""

    READ = "read"
    ADMIN = "admin"


@app.command("create")
def token_create(
    scope: Annotated[TokenScope, typer.Option(help="admin: also what changes what is served.")] = TokenScope.READ,
    tenant: Annotated[list[str] | None, typer.Option(help="Only this tenant; may be given again. Without, all.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="AGE", help="After so long it is good for nothing: 90s, 15m, 12h, 90d.")
    ] = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="Keep nothing of it: a short-lived one that only reads, for named tenants.")
    ] = False,
    note: Annotated[str, typer.Option(help="What it is for, shown by `headrace token list`.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token for the HTTP API. It is shown this once."""
    from headrace.places import parse_age_s
    from headrace.token_command import create, show_created

    try:
        lifetime_s = None if expires is None else parse_age_s(expires)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--expires") from None
    done = create(load(config), scope.value, tenant or (), lifetime_s=lifetime_s, signed=signed, note=note)
    if as_json:
        output.print_json(done)
    else:
        show_created(done)


@app.command("list")
def token_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the tokens that are kept, without their secrets."""
    from headrace.token_command import show_tokens, tokens

    listed = tokens(load(config))
    if as_json:
        output.print_json(listed)
    else:
        show_tokens(listed)


@app.command("revoke")
def token_revoke(
    token: Annotated[str | None, typer.Argument(metavar="ID", help="The token's id.")] = None,
    signed: Annotated[bool, typer.Option("--signed", help="All signed tokens, and links to exports, instead.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a token be good for nothing any more, within a second."""
    from headrace.token_command import revoke, revoke_signed

    if (token is None) != signed:
        raise typer.BadParameter("give a token's id, or --signed")
    if token is None:
        revoke_signed(load(config))
        if as_json:
            output.print_json({"revoked": "signed"})
        else:
            output.out.print("All signed tokens are revoked")
        return
    done = revoke(load(config), token)
    if as_json:
        output.print_json(done)
    else:
        output.out.print(f"Token {done.id} is revoked")
