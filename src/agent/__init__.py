"""A tunnel agent and its hub."""
