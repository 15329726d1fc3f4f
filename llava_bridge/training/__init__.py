"""Training: stages, HF Trainer under DeepSpeed or FSDP, checkpoints, what is saved."""
