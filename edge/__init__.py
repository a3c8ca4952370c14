"""Replicas -> readers over HTTP. Nothing here yet: replicas are read in process, with any SQLite or `appliers.reader`."""
