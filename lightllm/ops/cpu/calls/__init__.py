"""What each kernel is told: int64 numbers at these places of one array. Addresses are those of memory, strides are in bytes where
nothing else is said. Read by the kernels and by who calls them; imports nothing.
"""
