"""Cache Manager Server: owns the table of images, their virtual token ids, and the files with their bytes and embeddings."""
