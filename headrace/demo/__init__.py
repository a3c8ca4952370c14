"""`headrace demo`: a Postgres of its own, sample traffic of five use cases, and a live view of the replicas.

    source      the Postgres server with seven tables, seeded          schema.sql, seed.sql
    pipeline    `headrace run` as a child process, and what its stages say of themselves
    traffic     an application: transactions of one tenant each, at a steady rate
    lag         when each of them is visible in its replica, measured by reading the replica
    usecases    the queries that an application asks, answered from one replica
    verify      whether every replica equals Postgres
    view        the terminal, or plain lines
    app         all of it, from the first start to the summary

Nothing here is part of the product: the demo drives it from outside, as a user does. So it may look at files at
intervals, which the product never does.
"""
