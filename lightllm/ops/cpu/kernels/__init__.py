"""The source of the CPU kernels, one file each. Importing it needs Numba; only `lightllm.ops.cpu.compile` does."""
