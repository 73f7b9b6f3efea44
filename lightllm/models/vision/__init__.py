"""Vision encoders with their projectors: from the pixels of images to vectors that stand in the place of token embeddings."""
