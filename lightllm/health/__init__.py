"""The Health Server: whether the server serves, and if not, why."""
