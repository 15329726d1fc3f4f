"""Publishing: model cards with evaluation results, and uploads to the Hugging Face Hub."""
