"""The Triton kernels, one file an operation, with the signatures of `ops/torch/`. docs/kernels.md is the guide to them.

The public functions in `ops/` choose these for CUDA tensors and import them only then. Each file holds the kernel, the
function that launches it, and `COMPILE_CASES`: what `tools/compile_kernels.py` compiles ahead of time.
"""
