"""Distributed training strategies."""
