"""The command line itself: help, wrong usage, and errors as text and as JSON."""

from __future__ import annotations

import msgspec
import pytest

from headrace import docs
from tests.headrace.conftest import DEAD_DSN, Operator

COMMANDS = sorted(docs.commands())


def test_the_first_help_names_every_command(operator: Operator) -> None:
    """`headrace --help` lists the commands, each with a sentence; without arguments it is shown as well."""
    text = operator.text("--help")
    assert all(name.split()[0] in text for name in COMMANDS)
    assert operator.ask(code=2).stdout.rstrip() == text.rstrip()
    assert all(name.split()[1] in operator.text("tenant", "--help") for name in COMMANDS if name.startswith("tenant "))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, operator: Operator) -> None:
    """--help says what the command does and each of its options, in 80 columns, and needs no configuration."""
    text = operator.text(*command.split(), "--help", COLUMNS="80", TERMINAL_WIDTH="80")
    assert f"headrace.cli {command}" in " ".join(text.split())
    for line in docs.commands()[command]:
        name = line.split("`")[1]
        assert name.lower() in text.lower(), name
        assert not line.endswith(": None")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_an_error_of_usage(command: str, operator: Operator) -> None:
    """Exit code 2, the option's name, and where to find help; nothing is done."""
    done = operator.ask(*command.split(), "--no-such-option", code=2)
    assert "--no-such-option" in done.stderr
    assert "--help" in done.stderr
    assert done.stdout == ""
    assert list(operator.directory.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["tenant", "no-such-command"],
        ["tenant", "info"],
        ["tenant", "info", "acme", "--shared"],
        ["tail", "--rows"],
        ["tail", "--from", "somewhere"],
        ["tail", "--since", "yesterday"],
        ["tail", "--from", "end", "--since", "1h"],
        ["tail", "--limit", "0"],
        ["lag", "--top", "0"],
        ["lag", "--partition", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_refused_before_anything_is_opened(arguments: list[str], operator: Operator) -> None:
    """Exit code 2, and no directory is made."""
    assert "Error" in operator.ask(*arguments, code=2).stderr
    assert list(operator.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        (["status"], "ConfigError", 1),
        (["lag"], "ConfigError", 1),
        (["tail"], "LogMissing", 75),
        (["tenant", "list"], "ReplicasMissing", 1),
        (["tenant", "info", "acme"], "ReplicasMissing", 1),
        (["check"], "ConfigError", 1),
        (["setup"], "ConfigError", 1),
    ],
)
def test_an_error_is_a_paragraph_or_a_document(arguments: list[str], error: str, code: int, operator: Operator) -> None:
    """Without a configuration: the error's name and fix on standard error; with --json the same as one document."""
    said = operator.ask(*arguments, code=code)
    assert said.stdout == ""
    assert said.stderr.startswith(f"{error}: ")
    assert "Fix: " in said.stderr
    as_json = operator.ask(*arguments, "--json", code=code)
    assert as_json.stdout == ""
    document = msgspec.json.decode(as_json.stderr)
    assert document.keys() == {"error", "message", "hint", "context"}
    assert (document["error"], bool(document["hint"])) == (error, True)


def test_an_error_worth_retrying_has_its_own_exit_code(operator: Operator) -> None:
    """A server that is down ends a command with 75, so that a supervisor may start it again; no password is shown."""
    said = operator.ask("setup", code=75, HEADRACE_SOURCE_DSN=DEAD_DSN).stderr
    assert said.startswith("SourceUnavailable: ")
    assert "a-secret" not in said


def test_a_configuration_that_is_none_is_named(operator: Operator) -> None:
    """Every command says which file and key is wrong."""
    path = operator.directory / "other.toml"
    path.write_text("[log]\nkind = 'carrier pigeon'\n")
    for command in (["status"], ["tail"], ["tenant", "list"]):
        said = operator.ask(*command, "--config", str(path), code=1).stderr
        assert "ConfigError" in said
        assert "other.toml" in said
        assert "$.log.kind" in said
