"""Synthetic captions for a data set, written by any image-text model of transformers."""
