"""The command line: one module per command, and the process around it."""
