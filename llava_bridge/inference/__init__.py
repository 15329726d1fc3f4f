"""Asking a LLaVA: one prompt, many pictures, a talk in the terminal."""
