"""The recipes of this package: every file here is one, named after it with "-" for "_"."""
