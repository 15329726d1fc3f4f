"""Evaluate encoders and LLaVAs on retrieval and MLLM benchmarks and compare them in one report."""
