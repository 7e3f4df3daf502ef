"""The flags of the commands.  The modules beside this folder are the commands."""
