"""Both kinds of connection print values alike, and their errors say what to do without telling a secret."""

from __future__ import annotations

import pytest
from psycopg.conninfo import make_conninfo

from cdc.connection import connect, connect_replication, describe_dsn, translated
from cdc.errors import Disposition, SourceConfused, SourceMisconfigured, SourceUnavailable
from headrace.local_postgres import free_port
from tests.conftest import Database

SETTINGS = {
    "datestyle": "ISO, MDY",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


@pytest.mark.every_postgres
def test_both_connections_have_the_same_output_settings(database: Database) -> None:
    """Whatever the database, the role or the DSN's own options say: a value copied and one streamed are one text."""
    name = database.name
    database.connect().execute(
        f"""
        alter database {name} set datestyle = 'German'; alter database {name} set timezone = 'Asia/Tokyo';
        alter database {name} set bytea_output = 'escape'; alter database {name} set extra_float_digits = 0;
        alter database {name} set intervalstyle = 'iso_8601'; alter database {name} set statement_timeout = '1h'
    """.encode()
    )
    dsn = make_conninfo(database.dsn, options="-c timezone=Europe/Berlin -c work_mem=5MB", application_name="mine")
    for opener in (connect, connect_replication):
        with opener(dsn, application_name="headrace-test") as conn:
            for setting, value in SETTINGS.items():
                row = conn.execute(f"show {setting}".encode()).fetchone()
                assert row == (value,), (opener.__name__, setting)
            assert conn.execute("show work_mem").fetchone() == ("5MB",)
            assert conn.execute("show application_name").fetchone() == ("headrace-test",)


def test_a_server_that_is_not_there_is_worth_another_attempt(database: Database) -> None:
    """Connection refused is retried."""
    dsn = make_conninfo(database.dsn, port=free_port())
    for opener in (connect, connect_replication):
        with pytest.raises(SourceUnavailable) as caught:
            opener(dsn)
        assert caught.value.disposition is Disposition.RETRY


def test_an_internal_error_of_postgres_is_worth_another_attempt(database: Database) -> None:
    """T23: a catalog that is read in the midst of a change, as its server says it."""
    with pytest.raises(SourceConfused, match="missing 1 attribute") as caught, translated():
        database.connect().execute(
            "do $$ begin raise 'pg_attribute catalog is missing 1 attribute(s)' using errcode = 'XX000'; end $$"
        )
    assert caught.value.disposition is Disposition.RETRY


def test_a_wrong_database_or_role_is_not(database: Database) -> None:
    """What the configuration says wrong stops, with the key to correct."""
    for wrong in ({"dbname": "no such database"}, {"user": "nobody here"}):
        with pytest.raises(SourceMisconfigured) as caught:
            connect(make_conninfo(database.dsn, **wrong))
        assert caught.value.hint
    with pytest.raises(SourceMisconfigured, match="does not exist") as caught:
        connect(make_conninfo(database.dsn, dbname="no such database"))
    assert "source.dsn" in caught.value.hint


@pytest.mark.parametrize("dsn", ["postgresql://u:hunter2@[h/db", "password=hunter2 host", "hunter2"])
def test_a_connection_string_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    """It may hold a password."""
    with pytest.raises(SourceMisconfigured) as caught:
        connect(dsn)
    assert "hunter2" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__} {caught.value.context}"
    assert caught.value.__suppress_context__


def test_a_dsn_for_people_holds_no_password() -> None:
    """Host, port, database and user are enough to recognise it."""
    assert (
        describe_dsn("postgresql://app:hunter2@db.example.com:5433/shop?sslmode=require") == "app@db.example.com:5433/shop"
    )


def test_a_network_that_swallows_everything_is_noticed(database: Database) -> None:
    """What we send must be acknowledged within a minute, or within the time that the connection string says."""
    for dsn, expected in ((database.dsn, "60000"), (make_conninfo(database.dsn, tcp_user_timeout=5000), "5000")):
        with connect_replication(dsn) as conn:
            assert conn.info.get_parameters()["tcp_user_timeout"] == expected
