"""The agent's own wiring: its links to hubs, and what it counts."""
