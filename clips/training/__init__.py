"""A training run: config, model and data, checkpoints, validation, progress; the loop and the step: `clips.train`."""
