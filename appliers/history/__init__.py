"""What each tenant's rows have been: the log's records again, by tenant, in the object store, for as long as wanted.

    segments    some megabytes of one partition's log, in them each tenant's records side by side: the wire contract
    recorder    what an applier reads -> segments              reading   one tenant's records -> from segments, and the log

A partition of the log holds all its tenants' records one after the other. To take one tenant back in time from there would
cost what all of them wrote; from segments it costs what the tenant wrote, and a look at the index of each. The log need not
keep records any longer than appliers need to read them.

Invariant: a segment holds every record of the partition from `first` up to `next`. What no segment has is read from the
log, so that a segment which was lost with its applier costs time and nothing else. Described in docs/time-travel.md.
"""
