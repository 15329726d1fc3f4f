"""Conversion of existing LLaVAs: other file formats, other encoders."""
