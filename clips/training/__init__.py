"""A training run: its config, training step, checkpoints, validation and logs."""
