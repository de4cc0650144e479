"""The hub's own wiring: its doors, the sessions of agents, and the choice among them."""
