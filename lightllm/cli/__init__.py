"""The `lightllm` command: which of its commands a line names."""
