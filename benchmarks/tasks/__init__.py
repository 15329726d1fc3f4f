"""Benchmarks of encoders and LLaVAs: their data, models, scoring and registry."""
