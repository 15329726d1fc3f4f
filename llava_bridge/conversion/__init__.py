"""LLaVAs that are there: other layouts on disk, other encoders."""
