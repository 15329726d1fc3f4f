"""What goes out into the world: model cards with numbers in them, and uploads to the Hugging Face hub."""
