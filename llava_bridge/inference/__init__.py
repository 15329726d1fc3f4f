"""Asking a LLaVA: one prompt, many images, a talk in the terminal."""
