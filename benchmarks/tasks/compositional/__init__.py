"""Choosing the right caption among similar ones: by similarity, by likelihood, or as a multiple-choice question."""
