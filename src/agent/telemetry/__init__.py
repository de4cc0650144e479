"""Logging, metrics, and health."""
