"""The model: an encoder, a projector and an LLM become a transformers LLaVA."""
