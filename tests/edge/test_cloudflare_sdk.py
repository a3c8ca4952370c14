"""Cloudflare's own Python client, unchanged but for its base URL, against the edge."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the SDK's own imports say
    import cloudflare

from edge.names import uuid_of
from tests.edge.served import ACCOUNT, Served


@pytest.fixture
def client(served: Served) -> Iterator[cloudflare.Cloudflare]:
    with cloudflare.Cloudflare(api_token=served.token, base_url=f"{served.url}/client/v4", max_retries=0) as client:
        yield client


def test_a_tour(client: cloudflare.Cloudflare) -> None:
    """List, get, query, raw, batch, export, bookmark, as its documentation has them."""
    databases = client.d1.database
    listed = list(databases.list(account_id=ACCOUNT, per_page=1))
    assert [(one.name, one.uuid, one.version) for one in listed] == [
        ("acme", uuid_of("acme"), "production"),
        ("bolt", uuid_of("bolt"), "production"),
    ]
    database = listed[0].uuid
    assert database is not None
    found = databases.get(database, account_id=ACCOUNT)
    assert (found.name, found.num_tables) == ("acme", 2)
    assert found.created_at is not None
    [result] = databases.query(database, account_id=ACCOUNT, sql="select id, a from items where id = ?", params=["2"])
    assert result.results == [{"id": 2, "a": "a2"}]
    assert result.success
    assert result.meta is not None
    assert (result.meta.rows_read, result.meta.changed_db) == (1, False)
    results = list(
        databases.query(
            database,
            account_id=ACCOUNT,
            batch=[{"sql": "select ? as x", "params": ["1"]}, {"sql": "select count(*) as n from items"}],
        )
    )
    assert [one.results for one in results] == [[{"x": "1"}], [{"n": 3}]]
    [raw] = databases.raw("acme", account_id=ACCOUNT, sql="select 1 as x, 2 as x")
    assert raw.results is not None
    assert (raw.results.columns, raw.results.rows) == (["x", "x"], [[1, 2]])
    exported = databases.export(database, account_id=ACCOUNT, output_format="polling")
    while exported.status != "complete":
        exported = databases.export(
            database, account_id=ACCOUNT, output_format="polling", current_bookmark=exported.at_bookmark or ""
        )
    assert exported.result is not None
    assert exported.result.signed_url is not None
    assert "INSERT INTO" in httpx.get(exported.result.signed_url).text
    bookmark = databases.time_travel.get_bookmark(database, account_id=ACCOUNT)
    assert bookmark.bookmark == exported.at_bookmark


def test_its_errors_are_its_own(client: cloudflare.Cloudflare) -> None:
    """The SDK's exceptions, with D1's codes and messages in them."""
    query = client.d1.database.query
    with pytest.raises(cloudflare.BadRequestError) as wrong:
        query("acme", account_id=ACCOUNT, sql="select * from raw_mails")
    assert [(one.code, one.message) for one in wrong.value.errors] == [(7500, "no such table: raw_mails: SQLITE_ERROR")]
    with pytest.raises(cloudflare.BadRequestError, match="attempt to write a readonly database: SQLITE_READONLY"):
        query("acme", account_id=ACCOUNT, sql="insert into items values (?)", params=["1"])
    with pytest.raises(cloudflare.NotFoundError):
        query("nobody", account_id=ACCOUNT, sql="select 1")
    with pytest.raises(cloudflare.BadRequestError, match="made by the source"):
        client.d1.database.create(account_id=ACCOUNT, name="new")
    stranger = client.with_options(api_token="no")  # noqa: S106 - none
    with pytest.raises(cloudflare.AuthenticationError):
        stranger.d1.database.list(account_id=ACCOUNT)
