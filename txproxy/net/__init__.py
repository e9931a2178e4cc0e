"""Sockets, signals and the janitor: everything that waits."""
