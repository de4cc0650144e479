"""The user's side of CONNECT: local ports and standard streams whose bytes go through a hub to a target."""
