"""What is the same for all kernels that compute rows, each by itself."""

(
    NEXT,  # a counter of all threads, 0 at first
    ROWS,
    BLOCK,  # rows that a thread takes at a time
) = range(3)
