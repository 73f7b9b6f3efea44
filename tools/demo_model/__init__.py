"""How the embedded demo model is made; `tools/train_demo_model.py` runs it."""
