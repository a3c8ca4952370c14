"""Pages of docs/ that are written from the code: `python -m headrace.docs`, or with `--check` only compared.

    docs/configuration.md    every key of the configuration, from the structs it is decoded into and their docstrings
    docs/commands.md         each command's options, between markers; the rest of that page is written by hand
    docs/metrics.md          every metric, from `headrace.metrics.families`

A docstring under a field is no attribute of anything, so it is read from the source. A key without one is an error:
what cannot be explained cannot be set. So is a command without a place on its page. --check answers 1 when stale.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import typer
from msgspec.inspect import (
    BoolType,
    DictType,
    Field,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    StrType,
    StructType,
    Type,
    type_info,
)

from cdc.errors import InvariantError
from fanout import tenancy
from headrace import output
from headrace.cli import app
from headrace.config import PREFIX, Config
from headrace.metrics.families import FAMILIES, PROCESS

ROOT: Final = Path(__file__).parent.parent

EXAMPLE: Final = """\
[source]
dsn = "postgresql://headrace@db.example.com:5432/shop?sslmode=verify-full"

[[tenancy]]
table = "public.plans"      # the first rule that matches decides
shared = true

[[tenancy]]
table = "public.*"
column = "tenant_id"

[log]
kind = "kafka"
bootstrap = "kafka-1:9092,kafka-2:9092"
replication_factor = 3
kafka = { "security.protocol" = "SSL" }

[replicas]
path = "/var/lib/headrace/replicas"

[[columns]]
column = "public.orders.total"
as = "real"
"""

INTRODUCTION: Final = f"""\
# Configuration

<!-- Written by `make docs` from the code. Edit the docstrings there. -->

One TOML file: `--config FILE`, else the one that `HEADRACE_CONFIG` names, else `headrace.toml` in the working directory.
Without a file the defaults below hold. An unknown key is an error, which names its place (`$.apply.batch_records`).

```toml
{EXAMPLE}```

A variable `{PREFIX}<SECTION>_<KEY>` in the environment stands over the file: `{PREFIX}SOURCE_DSN`, `{PREFIX}LOG_KIND`,
`{PREFIX}LOG_PARTITIONS`. Lists of tables (`[[tenancy]]`, `[[columns]]`) can be set in the file only. Passwords are never
shown or logged; `source.dsn_file` takes the connection string from a file that a secret store has written.
"""


def pages() -> dict[str, str]:
    """Every written page: its path below the root -> its content."""
    commands = (ROOT / "docs/commands.md").read_text()
    return {
        "docs/configuration.md": configuration(),
        "docs/commands.md": with_options(commands),
        "docs/metrics.md": metrics(),
    }


def configuration() -> str:
    """docs/configuration.md."""
    root = type_info(Config)
    assert isinstance(root, StructType)
    sections = [_section(field) for field in root.fields]
    return "\n".join([INTRODUCTION, *sections])


METRICS: Final = """\
# Metrics

<!-- Written by `make docs` from the code. Edit `headrace/metrics/families.py`. -->

With `[metrics] listen = "127.0.0.1:9464"` each process answers Prometheus at `GET /metrics`; without, none does. One stage
a machine, or a container, has that address; where `headrace run` starts several, `run` has it, the relay the next port, the
edge the one behind it, the appliers those from the third on. `relay`, `applier`, `edge` and `audit` under `[metrics]` give a
stage an address of its own. The numbers are read when somebody asks; asking costs the loops that move rows nothing.

A tenant is never a label: there are as many as you have customers. `headrace status` and `headrace tenant list` name them.
`partition` is one of `log.partitions`. Positions in the WAL are bytes since the server was made, so differences are bytes.
Counters begin at 0 with the process, and the relay's and applier's also when they start over behind an error.

The prefix says whose it is: `headrace_source_` comes from the relay, and from each edge that has a connection string, so
that somebody tells what became of the slot when no relay does; `headrace_log_` comes from the relay. Prometheus'
configuration and alert rules are in `infra/prometheus`, Grafana's dashboards in `infra/grafana`;
[operations.md](operations.md) says what to do.

"""


def metrics() -> str:
    """docs/metrics.md."""
    head = ["| metric | type | labels | |", "| --- | --- | --- | --- |"]
    sections: dict[str, list[str]] = {}
    for name, family in {**FAMILIES, **PROCESS}.items():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        row = f"| `{name}` | {family.kind} | {labels} | {_cell(family.meaning)} |"
        sections.setdefault(_PREFIXES.get(name.split("_")[1], "Every process"), []).append(row)
    every = sections.pop("Every process")
    pages = [*sections.items(), ("Every process", every)]
    return METRICS + "\n".join("\n".join([f"## {title}", "", *head, *rows, ""]) for title, rows in pages)


_PREFIXES: Final = {
    "source": "The source and its slot",
    "relay": "The relay",
    "log": "The log",
    "applier": "An applier",
    "edge": "The edge",
    "audit": "The audit",
    "run": "`headrace run`",
}


def field_docs(cls: type) -> dict[str, str]:
    """Field -> the docstring under it, on one line. Raises InvariantError for a field without one."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(ast.Constant(str() as text)):
                    found[statement.target.id] = " ".join(text.split())
                case _:
                    raise InvariantError(f"{cls.__name__}.{statement.target.id} has no docstring")
    return found


def _section(field: Field) -> str:
    is_list = isinstance(field.type, ListType)
    struct = field.type.item_type if isinstance(field.type, ListType) else field.type
    assert isinstance(struct, StructType)
    title = f"[[{field.encode_name}]]" if is_list else f"[{field.encode_name}]"
    about = inspect.getdoc(struct.cls) or ""
    if struct.cls is tenancy.Rule:
        about = f"{about}\n\n{_details(inspect.getdoc(tenancy) or '')}"
    docs = field_docs(struct.cls)
    rows = [
        f"| `{key.encode_name}` | {type_text(key.type)} | {_default(key)} | {_cell(docs[key.name])} |"
        for key in struct.fields
    ]
    head = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## `{title}`", "", about, "", *head, *rows, ""])


def _details(text: str) -> str:
    """A module's docstring without its first sentence, which the struct's own says; its indented blocks are Markdown's."""
    return text.split("\n\n", 1)[1]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def type_text(kind: Type) -> str:
    """A type for people, with its bounds."""
    match kind:
        case LiteralType(values):
            return " or ".join(f"`{value}`" for value in values)
        case BoolType():
            return "boolean"
        case StrType():
            return "text"
        case IntType() | FloatType():
            return " ".join(["integer" if isinstance(kind, IntType) else "number", *_bounds(kind)])
        case DictType():
            return f"table of {type_text(kind.value_type)}"
        case _:
            raise InvariantError(f"No word for the type {kind}")


def _bounds(kind: IntType | FloatType) -> Iterator[str]:
    if kind.gt is not None:
        yield f"> {kind.gt:,}"
    if kind.ge is not None and kind.le is not None:
        yield f"from {kind.ge:,} to {kind.le:,}"
    elif kind.ge is not None:
        yield f">= {kind.ge:,}"


def _default(field: Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    match value:
        case "":
            return "none"
        case {}:
            return "empty"
        case bool():
            return f"`{str(value).lower()}`"
        case int():
            return f"`{value:_}`"
        case _:
            return f"`{value}`"


def commands() -> dict[str, list[str]]:
    """Every command, `tenant list`, -> its arguments and options as lines of Markdown."""
    found: dict[str, list[str]] = {}

    def walk(name: str, command: Any) -> None:
        for below, child in getattr(command, "commands", {}).items():
            walk(f"{name} {below}".strip(), child)
        if not hasattr(command, "commands"):
            found[name] = [_option(parameter) for parameter in command.params]

    walk("", typer.main.get_command(app))
    return found


def _option(parameter: Any) -> str:
    named = parameter.opts[0].startswith("-")
    names = ", ".join(f"`{name}`" for name in parameter.opts) if named else f"`{parameter.name.upper()}`"
    default = parameter.default if isinstance(parameter.default, str | int | float) else None
    shown = "" if default in (None, False, "") else f" Default: `{default}`."
    return f"- {names}: {parameter.help}{shown}"


def with_options(page: str) -> str:
    """A page with the options of every command between its markers. Raises InvariantError for a command without any."""
    for name, lines in commands().items():
        start, end = f"<!-- options of {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(start)
        if not found:
            raise InvariantError(f"docs/commands.md has no `{start.strip()}`", hint="Write a section for the command.")
        page = before + start + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    return page


def main(arguments: Sequence[str]) -> int:
    """Write or check; answers the exit code."""
    stale = {path: text for path, text in pages().items() if _present(ROOT / path) != text}
    if "--check" in arguments:
        for path in stale:
            output.err.print(f"{path} is not what the code says. [bold]Fix:[/] make docs")
        return output.EXIT_ERROR if stale else 0
    for path, text in stale.items():
        (ROOT / path).write_text(text)
        output.out.print(f"wrote {path}")
    return 0


def _present(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
