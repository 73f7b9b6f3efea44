"""`/v1/chat/completions`, `/v1/completions`, `/v1/models`; and the chat that other APIs' requests are read into."""
