"""The command line, the configuration and the processes that join the stages; the demo."""
