"""Operations on tensors, one file each: the public function with shapes and dtypes, and what it does on a CPU.

`ops/triton/` holds the kernels for NVIDIA GPUs; they are imported when the first tensor on a GPU comes. `ops/cpu/` holds
kernels for a CPU.
"""
