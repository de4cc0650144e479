"""X.509 certificates: what they contain, whose dates are wrong, and whether they have expired."""
