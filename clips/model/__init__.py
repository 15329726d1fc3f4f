"""The model: towers and captioner, their tokens, their losses, and how they are built and loaded."""
