"""What differs -> what is asked for: the least, and never what cannot be had."""

from __future__ import annotations

from appliers.compare import Difference
from cdc.refill import RefillRequest
from headrace.repair import plan_of
from headrace.verify import Identity, TenantVerified

KNOWN = {"items": Identity(7, ("tenant", "id")), "rates": Identity(8, ("n",))}


def differs(tenant: str | None, *differences: Difference, more: int = 0, reason: str = "") -> TenantVerified:
    return TenantVerified(
        tenant=tenant, partition=0, outcome="differs", differences=list(differences), more=more, reason=reason
    )


MISSING = Difference("items", "missing", ("t", "1"))
EXTRA = Difference("items", "extra", ("t", "2"))
INDEX = Difference("items", "index", ("by_name",))


def test_rows_are_asked_for_by_their_keys() -> None:
    """One request for each table of a tenant; of the shared replica under its own name."""
    rate = differs(None, Difference("rates", "changed", ("5",), ("rate",)))
    plan = plan_of([differs("t", MISSING, EXTRA), rate], KNOWN, "s")
    assert plan.requests == [
        RefillRequest(7, True, (("t", "1"), ("t", "2")), ("tenant", "id"), "t", "s"),
        RefillRequest(8, True, (("5",),), ("n",), "_shared", "s"),
    ]
    assert (plan.rows, plan.anew, plan.tables, plan.beyond) == (3, [], [], [])


def test_what_is_more_than_rows_is_made_anew() -> None:
    """An index, too many rows, a file that cannot be read, rows without a key, a tenant that stopped."""
    keyless = Difference("items", "missing", ())
    stopped = TenantVerified(tenant="t", partition=0, outcome="not compared", reason="x", quarantined=True)
    for one in (
        differs("t", MISSING, INDEX),
        differs("t", MISSING, more=1),
        differs("t", reason="damaged"),
        differs("t", keyless),
        differs("t", Difference("unknown", "table", ())),
        stopped,
    ):
        plan = plan_of([one], KNOWN, "s")
        assert plan.requests == [RefillRequest(tenant="t", slot="s")]
        assert plan.anew == ["t"]


def test_of_the_shared_replica_whole_tables_and_no_more() -> None:
    """It has no new file: what is not rows is beyond; so is a tenant that no request can name."""
    plan = plan_of([differs(None, Difference("rates", "missing", ("5",)), more=900)], KNOWN, "s")
    assert plan.requests == [RefillRequest(8, True, slot="s")]
    assert plan_of([differs(None, INDEX)], KNOWN, "s").beyond == ["_shared"]
    assert plan_of([differs("", MISSING)], KNOWN, "s").beyond == ["''"]


def test_what_is_equal_or_still_copied_is_left() -> None:
    """Nothing is asked for where nothing is wrong."""
    copying = TenantVerified(tenant="t", partition=0, outcome="not compared", reason="a first copy is under way")
    assert plan_of([copying, TenantVerified(tenant="u", partition=0, outcome="equal")], KNOWN, "s").requests == []
