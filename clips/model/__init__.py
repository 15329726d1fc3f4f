"""What is trained: towers and captioner, their tokens, their losses, and how they are made and loaded."""
