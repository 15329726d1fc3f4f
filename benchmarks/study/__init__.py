"""Studies: which encoders, inside which LLMs, on which benchmarks; and running what of it is missing."""
