"""Shared infrastructure of all commands: artifacts, run identity, and caches."""
