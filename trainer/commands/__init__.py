"""One module per command: flags in, the work called, nothing else."""
