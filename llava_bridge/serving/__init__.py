"""Serve a trained LLaVA over HTTP: OpenAI's chat API and a chat page."""
