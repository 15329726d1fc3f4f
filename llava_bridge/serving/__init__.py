"""A trained LLaVA behind HTTP: OpenAI's chat API and a page to talk to it."""
