"""What operators ask: health, metrics, profiles; and what is told of each request: the log, traces."""
