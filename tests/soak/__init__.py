"""What `make soak` runs: everything for a long time, looked at every few seconds, to see what grows."""
