"""Who may reach what: the three things that users replace, and who the hub's agents are.

The agent's defaults stand here too. Pure functions of a request's head, but for what is read from files.
"""
