"""Atomically written files, and the user's cache."""
