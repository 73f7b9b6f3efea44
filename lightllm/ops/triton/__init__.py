"""The Triton kernels, one file an operation, with the signatures of `ops/`. docs/kernels.md is the guide to them.

The public functions in `ops/` choose these for CUDA tensors and import them only then. Each file holds the kernel with
its formula, and the function that launches it; what is compiled ahead of time and tuned is listed in `tools/kernels/`.
"""
