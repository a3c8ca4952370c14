"""The dashboard: one page that shows the whole pipeline live, and any tenant, to who has a token.

    pages     the page itself: files of this package, the same for everybody, under a strict content security policy
    events    what it shows: server-sent events, tenants by name, questions to ask of a replica

Invariants: the page holds no data and asks no other host; all data comes by the tokens of the API (`edge.door`). What the
pipeline is like is told to tokens for all tenants only; one that is limited to some tenants learns of these alone.
What there is to see comes from `edge.seams.Observer`. Nothing polls: the browser is told, and so is the worker.
"""
