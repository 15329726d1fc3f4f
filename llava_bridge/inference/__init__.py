"""Inference with a LLaVA: answers, log-likelihoods, chat in the terminal, a server."""
