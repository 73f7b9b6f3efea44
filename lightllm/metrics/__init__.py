"""The Metric Server: what the server did in the last minutes, and the push of its metrics to a gateway."""
