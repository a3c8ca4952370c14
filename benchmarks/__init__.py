"""Measurements of every stage, of the whole, and beside `pg_recvlogical`: `make bench`, or `python -m benchmarks --help`.

    __main__     the command line                relay, applier, end_to_end, latency, decode    one part each
    large_transaction    one more, only when it is named
    workspace    Postgres, its load, the broker  stage, null_log    what the measured child processes run
    workload     the changes and their slots     processes, machine, report    what is read, and how it is shown

Not part of the product: nothing in the packages imports this. docs/benchmarks.md says how to read the tables.
"""
