"""Tenant id -> file: reversible, without collisions on any file system, and never out of its directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliers.place import decode_name, encode_name, replica_files, replica_path

TENANT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300)


@given(TENANT)
def test_a_name_gives_its_tenant_back(tenant: str) -> None:
    """Decoding is the inverse; only the hash of a long id tells nothing."""
    name = encode_name(tenant)
    assert decode_name(name) == (None if name.startswith("==") else tenant)
    if name.startswith("=="):
        assert len(name) == 66
        assert len(tenant.encode()) > 66


@given(TENANT)
def test_a_name_is_one_plain_lower_case_component(tenant: str) -> None:
    """No separator, dot, blank, upper case or leading underscore: nothing that a file system folds or follows."""
    name = encode_name(tenant)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_=")
    assert name
    assert not name.startswith("_")
    assert len(name) <= 200
    root = Path("/replicas")
    assert replica_path(root, tenant, 64).relative_to(root).parts[1] == name + ".db"


@given(TENANT, TENANT)
def test_two_tenants_never_share_a_name(one: str, other: str) -> None:
    """Also where the file system ignores case or normalises Unicode."""
    assert (encode_name(one).lower() == encode_name(other).lower()) == (one == other)


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("acme-7", "acme-7"),
        ("Acme", "=41cme"),
        ("_shared", "=5fshared"),
        ("a_b", "a_b"),
        ("../../etc/passwd", "=2e=2e=2f=2e=2e=2fetc=2fpasswd"),
        ("", "="),
        (".", "=2e"),
        ("con", "con"),
        ("é", "=c3=a9"),
        ("e\u0301", "e=cc=81"),
        ("=", "=3d"),
        ("==", "=3d=3d"),
    ],
)
def test_names_stay_as_they_are_for_ever(tenant: str, name: str) -> None:
    """Fixed: a change would lose every replica from sight."""
    assert encode_name(tenant) == name


@pytest.mark.parametrize("name", ["Acme", "a=4", "a=zz", "=41=4", "a b", "=61", "_a", "=ff", "a=+1", "日"])
def test_a_name_that_no_tenant_has_is_refused(name: str) -> None:
    """A file that somebody put there is not taken for a tenant's."""
    with pytest.raises(ValueError):  # noqa: PT011 - which of its reasons does not matter
        decode_name(name)


def test_replicas_of_a_partition_are_its_database_files(tmp_path: Path) -> None:
    """Journals and files being made are not replicas; a partition without a directory has none."""
    directory = tmp_path / "003"
    directory.mkdir()
    for name in ("a.db", "a.db-wal", "a.db-shm", "b.17.new", "=41.db"):
        (directory / name).touch()
    assert sorted(path.name for path in replica_files(tmp_path, 3)) == ["=41.db", "a.db"]
    assert list(replica_files(tmp_path, 4)) == []
