"""Bytes: how the protocol's messages look. No decisions, no I/O."""
