"""What a training will need, before it costs anything: memory, time, GPUs and storage."""
