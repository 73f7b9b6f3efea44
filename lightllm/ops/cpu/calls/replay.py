"""What the replay of recorded calls is told."""

from __future__ import annotations

(
    ENTRIES,  # int64 [NUM_ENTRIES, ENTRY_LENGTH]
    NUM_ENTRIES,
    BARRIER,  # the function at which the threads of a parallel region wait for each other; 0: there is one thread
) = range(3)
LENGTH = 3

(
    FUNCTION,  # of a kernel
    TOLD,  # the address of what it is told
    ALONE,  # whether one thread calls it
    BEGUN,  # a counter of all threads, 0 at first
) = range(4)
ENTRY_LENGTH = 4
