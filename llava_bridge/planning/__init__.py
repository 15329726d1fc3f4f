"""What a LLaVA's training will need before it costs anything."""
