"""Plug any vision encoder into LLaVA and train it with DeepSpeed."""
