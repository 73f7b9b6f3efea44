"""Answers of a running server, recorded byte for byte: `tools/record_answers.py`."""
