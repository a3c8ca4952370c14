"""The embedded log: a directory that one relay appends to and any number of appliers on the same machine read.

    log.db    SQLite in WAL mode: the table `records`, append-only, in the order of its rowid
    log.lock  held by the writer with flock, so that a dead one frees it
    wake/     one FIFO for each reader that lives (fanout.log.wakeup)

    store     the file: creation, the checks that refuse what is not ours, and the errors of SQLite in our terms
    writer    LogWriter: buffers, then one transaction a commit, durable when `commit` returns
    reader    LogReader: short queries from a position on; never a transaction while it waits
    retention what is too old goes, a little with every commit

One offset counts the records of all partitions, so a partition's offsets have gaps. A broadcast is one row, which every
partition delivers as its own. Rows are appended whole transactions at a time by one writer and trimmed at the front
only: whoever sees offset n sees every later record up to the end, and none between two that are there is missing.
"""

from fanout.log.embedded.reader import EmbeddedReader
from fanout.log.embedded.writer import EmbeddedWriter

__all__ = ["EmbeddedReader", "EmbeddedWriter"]
