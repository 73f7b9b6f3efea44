"""`/generate` and `/generate_stream`, and text-generation-inference's shape of them."""
