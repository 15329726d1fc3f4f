"""Synthetic captions for a dataset, written by any image-text model of transformers."""
