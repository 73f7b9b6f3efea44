"""Implementations of attention over KV memory by slots: one file each, chosen once when a model is built."""
