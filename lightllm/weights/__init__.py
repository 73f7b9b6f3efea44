"""Checkpoint reading: tensor by tensor, each rank its own slices, safetensors or .bin; or random weights."""
