"""The scheduler on a virtual clock: what a policy does to millions of requests, without a device.

    trace (requests in time) -> Scheduler, the real one -> SimulatedBackend (a round takes what a latency model says)

`python -m lightllm.simulate --help`. Nothing sleeps: time jumps from event to event.
"""
