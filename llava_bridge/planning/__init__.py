"""Estimates of a LLaVA training's cost."""
