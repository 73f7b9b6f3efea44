"""Implementations in plain torch: written for the CPU, correct on every device."""
