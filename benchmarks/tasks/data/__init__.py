"""Benchmark datasets and their file formats."""
