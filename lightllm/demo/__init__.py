"""The embedded demo model, served when no --model_dir is given; `demo_model/train.py` makes its files."""

from pathlib import Path

MODEL_DIR = str(Path(__file__).parent)
