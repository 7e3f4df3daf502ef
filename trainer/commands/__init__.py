"""One module per command.  Each parses its flags and calls the code that does the work."""
