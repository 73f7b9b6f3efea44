"""Operations on tensors, one file each: the public function with shapes and dtypes, and the choice of implementation.

`ops/torch/` holds the implementations in plain torch: written for the CPU, correct on every device.
"""
