"""Telling a caption that fits from one that nearly does: by similarity, by likelihood, or asked in words."""
