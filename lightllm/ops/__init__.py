"""Operations on tensors, one file each: the public function with shapes and dtypes, and the choice of implementation.

`ops/torch/` holds the implementations in plain torch: written for the CPU, correct on every device. `ops/triton/` holds
the kernels for NVIDIA GPUs; they are imported when the first tensor on a GPU comes.
"""
