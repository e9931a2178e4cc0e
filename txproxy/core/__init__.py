"""Decisions: who gets which backend, what is owed to whom. No I/O, no clock."""
