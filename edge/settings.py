"""What the HTTP API is told: the `[edge]` section of the configuration, and where the replicas are."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
MEGA: Final = 1 << 20


class EdgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP API, in the shape of Cloudflare D1's (`docs/d1-compatibility.md`)."""

    enabled: bool = False
    """Whether `headrace run` also serves it. `headrace edge` serves it in any case."""
    host: str = "127.0.0.1"
    """The address to listen on. Put what terminates TLS before it where others can reach it: tokens come in the clear."""
    port: Annotated[int, Meta(ge=1, le=65535)] = 8787
    """The port to listen on."""
    workers: Count = 2
    """Processes that answer; about as many as there are cores to spare."""
    threads: Count = 4
    """Threads of each worker for queries that are not answered at once. They run at a lower priority than short queries."""
    auth: Literal["tokens", "none"] = "tokens"
    """Who may ask. none: everybody who reaches the port, for tests and demos."""
    tokens: str = ".headrace/tokens.json"
    """The file of tokens, which `headrace token` writes: hashes, and a key. Only this user may read it."""
    audit: str = ".headrace/edge-audit.jsonl"
    """Where refusals, exports and all that is asked with an admin's token is noted, a JSON line each. Empty: nowhere."""
    usage: str = ".headrace/usage.db"
    """Where queries and rows are counted, for `headrace usage`. Empty: nowhere."""
    dashboard: bool = True
    """Whether /dashboard/ is served, a page that shows the pipeline to tokens for all tenants (`docs/dashboard.md`)."""
    questions: str = ""
    """A file of queries that the dashboard asks of the tenant that is shown: a JSON list of objects with `title`, `sql` and,
    if it is to have any, `params`. Empty: none."""
    exports: str = ".headrace/exports"
    """Where exports wait for their download, for an hour."""
    region: Annotated[str, Meta(pattern="^[A-Z]{0,8}$")] = "WEUR"
    """What answers say of the region that served them, in D1's words: WNAM, ENAM, WEUR, EEUR, APAC, OC."""
    colo: Annotated[str, Meta(pattern="^[A-Z]{0,8}$")] = "HDR"
    """What answers say of the place that served them: three letters."""
    advertise: Annotated[str, Meta(pattern="^(https?://[^/?#@]+)?$")] = ""
    """Where other machines and their clients reach this machine's edge, such as `http://10.0.0.7:8787`. The applier beside
    it writes it into its claims (`snapshots.url`): so each edge knows whose partitions are where."""
    route: Literal["off", "proxy", "redirect", "hydrate"] = "off"
    """What becomes of a request for a tenant whose partition another machine has. proxy: it is asked, and its answer
    passed on; both look at the token. redirect: 307 to it. hydrate: what reads is answered from a copy that is made here,
    of snapshot and log; the rest as with proxy. off: answered from what is here. Needs `advertise` and `snapshots.url`."""
    copies: str = ".headrace/copies"
    """Where `route = "hydrate"` keeps its copies, until the edge ends."""
    copies_most: Count = 200
    """Copies that each worker keeps; the least recently read one goes first."""
    copies_bytes: Annotated[int, Meta(ge=MEGA)] = 1024 * MEGA
    """What they may take of the disk, for each worker."""
    copies_fresh_s: Positive = 10.0
    """A copy older than this is made anew before it is read again."""
    copies_idle_s: Positive = 300.0
    """A copy that nobody has read for so long is removed."""
    regions: dict[str, Annotated[str, Meta(pattern="^https?://[^/?#@]+$")]] = {}
    """Where the edges of other regions are, by the regions' names in `placement`, for tenants that its lists place there: a
    request for one is answered with 307, never with a row. Of regions that are not named here the answer is 421."""
    account: str = ""
    """The only account id that requests may name; empty: any, since clients must name one."""
    statement_timeout_s: Positive = 30.0
    """Longest time for one request's statements, all together."""
    queue_timeout_s: Positive = 5.0
    """Longest wait for a thread, before the answer is 429."""
    tenant_concurrency: Count = 1
    """How many longer queries of one tenant each worker runs at the same time; others of the tenant wait."""
    tenant_queue: Count = 32
    """How many longer queries of one tenant may wait in each worker, before the answer is 429."""
    bookmark_wait_s: Positive = 5.0
    """Longest wait for a replica to reach the bookmark that a request brings."""
    open_replicas: Count = 1000
    """Replicas that each worker keeps open: up to five file descriptors each."""
    result_bytes: Annotated[int, Meta(ge=1024)] = 32 * MEGA
    """Largest result of one request, before it is text."""
    memory_bytes: Annotated[int, Meta(ge=MEGA)] = 128 * MEGA
    """What SQLite may take of memory in each worker; above it, caches give way, and at twice as much queries fail."""
    value_bytes: Annotated[int, Meta(ge=1024)] = 4 * MEGA
    """Largest value, and row, that a query may touch or make."""


class EdgeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker process needs to know; sent to it as one value."""

    root: str
    """`replicas.path`."""
    config: EdgeConfig = EdgeConfig()
    counts: str = ""
    """A directory in which workers count requests (`edge.counts`). Empty: nobody asks."""
