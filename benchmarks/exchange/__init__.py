"""Results that others measured: lmms-eval's files, and published numbers from a CSV."""
