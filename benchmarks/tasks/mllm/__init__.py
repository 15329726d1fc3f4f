"""MLLM benchmarks by lmms-eval's own task definitions and scorers."""
