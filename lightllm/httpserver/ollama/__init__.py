"""Ollama's routes, `/api/...`."""
