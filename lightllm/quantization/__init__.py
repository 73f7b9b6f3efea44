"""Formats of weights, one a file: from a checkpoint's tensors to linear layers that are ready to compute."""
