"""How a training is spread over processes."""
