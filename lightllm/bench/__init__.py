"""Load generator: measures a running server. `lightllm bench --help`."""
