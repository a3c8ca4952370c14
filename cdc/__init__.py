"""Postgres -> transactions: connection, slot, stream, decoder, assembler, first copy. Knows no tenant, no log, no SQLite."""
