"""The model: build a transformers LLaVA from an encoder, a projector and an LLM."""
