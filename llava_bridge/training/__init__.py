"""Training: stages, HF Trainer under DeepSpeed or FSDP, checkpoints, saved models."""
