"""The embedded demo model: what the server serves when no --model_dir is given."""

from pathlib import Path

MODEL_DIR = str(Path(__file__).parent)
"""The folder of its config, weights and tokenizer."""
