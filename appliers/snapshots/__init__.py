"""Snapshots of replicas in an object store: what a new or a dead machine's successor takes a partition over from.

    store      the objects: a folder, or a bucket by URL        keys       where each object lies
    claims     who owns a partition: epochs, fencing            manifest   a partition's state: the wire contract
    publish    take a partition over; publish its manifest      copying    a replica -> an object -> a replica
    policy     which tenants are due                            collect    what may be removed

Invariant: what the newest manifest of a partition names is durable, whole and checked; for every tenant of it, snapshot
plus log from the manifest's offset is the tenant's whole history. Described in docs/snapshots.md.
"""
