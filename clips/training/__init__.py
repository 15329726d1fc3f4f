"""A training run: its config, its step, its checkpoints and what it records."""
