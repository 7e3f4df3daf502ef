"""Run directories: their files, lock and checkpoints."""
