"""One tenant as of any transaction of its past, while everything else goes on. Described in docs/time-travel.md.

    bookmarks   a position as people hold it: text that sorts as time does
    travel      a time, an LSN or a bookmark -> a position; a position -> a replica's file as of it
    pins        which file readers of a tenant get: the live one, or one as of a position
    rows        what happened to one row

Restoring switches what is served, never what is applied (design decision 13): the live replica goes on beside it.
"""
