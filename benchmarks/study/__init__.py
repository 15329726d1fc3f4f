"""Studies: comparisons of encoders and LLaVAs, defined by a YAML file and executed step by step."""
