"""Where the runs of a study run: local processes or a cluster."""
