"""How the embedded demo model is made; `demo_model/train.py` runs it."""
