"""Benchmarks of an encoder with a text tower."""
