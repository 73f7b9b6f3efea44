"""Which worker takes a request. A policy sees the candidates and the request, and no socket or clock: the controller and
the simulator drive the same objects."""
