"""The embedded demo model, served when no --model_dir is given; `tools/train_demo_model.py` makes its files."""

from pathlib import Path

MODEL_DIR = str(Path(__file__).parent)
