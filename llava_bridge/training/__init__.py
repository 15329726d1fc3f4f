"""Training: stages, HF Trainer under DeepSpeed, checkpoints, saved models."""
