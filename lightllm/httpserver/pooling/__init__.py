"""Vectors instead of texts: embeddings of OpenAI's API, and vLLM's classes, scores and rankings."""
