"""The log -> one SQLite replica a tenant: worker, apply, types, position, barrier, and the reader's side of a replica."""
