"""Plain torch references for what transformers does not have, written from the models' published descriptions alone."""
