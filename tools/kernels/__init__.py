"""What of each Triton kernel is compiled ahead of time and tuned on a GPU: one file for each file of `ops/triton/`."""
