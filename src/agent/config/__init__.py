"""The settings of operators: the schema, the sources of values, and their display."""
