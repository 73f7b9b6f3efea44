"""Kernels that must not ship, for the test of the check."""
