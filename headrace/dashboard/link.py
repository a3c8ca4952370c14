"""`headrace dashboard`: the address that opens the dashboard, with a token that reads and is soon good for nothing.

The token is in the fragment (`#`), which a browser sends to no server; the page takes it from there and clears the address.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from edge.audit import Audit
from edge.settings import EdgeConfig
from edge.tokens import TokenFile
from headrace import output
from headrace.config import Config, host_and_port
from headrace.errors import CommandError
from headrace.quarantine import who

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - what it is reached by


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """`url`: holds a token, for so many seconds, unless `edge.auth` asks for none."""

    url: str
    expires_s: int | None
    tenants: list[str] | None


def link(config: Config, lifetime_s: int, tenants: Sequence[str] = ()) -> Link:
    """`tenants` empty: all. Raises CommandError without a dashboard, TokenRefused, TokenFileUnreadable."""
    edge = config.edge
    if not edge.dashboard:
        raise CommandError("The dashboard is switched off", hint="Remove `dashboard = false` from `[edge]`.")
    kept = sorted(set(tenants)) or None
    fragment = {"tenant": kept[0]} if kept is not None and len(kept) == 1 else {}
    if edge.auth == "none":
        return Link(url=_url(edge, fragment), expires_s=None, tenants=kept)
    token = TokenFile(Path(edge.tokens)).sign(kept, lifetime_s, who())
    audit = Audit(edge.audit)
    audit.note("token created", token="signed", by=who(), scope="read", tenants=kept)  # noqa: S106 - its id
    audit.close()
    return Link(url=_url(edge, {"token": token, **fragment}), expires_s=lifetime_s, tenants=kept)


def _url(edge: EdgeConfig, fragment: dict[str, str]) -> str:
    place = host_and_port(_ANYWHERE.get(edge.host, edge.host), edge.port)
    return f"http://{place}/dashboard/" + (f"#{urlencode(fragment)}" if fragment else "")


def open_browser(url: str) -> bool:
    """Where there is a desktop and somebody at it; answers whether it was tried."""
    desktop = sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return desktop and sys.stdout.isatty() and webbrowser.open(url)


def show_link(made: Link) -> None:
    """The address alone on a line, to be clicked or copied."""
    output.print_line(made.url)
    whose = "all tenants" if made.tenants is None else ", ".join(made.tenants)
    until = "" if made.expires_s is None else f" for {made.expires_s:,} s"
    output.err.print(f"Shows {whose}{until}, to everybody who has this address.", markup=False)
