"""Decides who may reach what. It holds the three parts that users can replace, and the identity of agents.

Everything is a pure function of a request's head, except for the readers of files.
"""
