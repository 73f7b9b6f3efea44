"""One second of a server's life, as the Metric Server keeps it and GET /metrics/history answers."""

from __future__ import annotations

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """All fields are floats, so that the record has a fixed size; NaN: nothing was there to measure. Rates are over the time
    since the sample before; quantiles (p50, p99) over the last ten seconds, over all Http Servers."""

    time: float
    """Unix time of the sample's end."""
    input_tokens_per_second: float
    """Prompt tokens computed."""
    output_tokens_per_second: float
    """Tokens generated."""
    requests_per_second: float
    """Requests answered to their end."""
    failures_per_second: float
    """Requests that were refused, or ended with an error."""
    running: float
    """Requests."""
    waiting: float
    paused: float
    slots_total: float
    slots_used: float
    """By requests."""
    slots_cached: float
    """By the prefix cache alone."""
    ttft_p50: float
    """Seconds to the first token."""
    ttft_p99: float
    itl_p50: float
    """Seconds between two rounds with tokens of one request."""
    itl_p99: float
    healthy: float
    """1: the server serves."""
