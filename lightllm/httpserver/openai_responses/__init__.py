"""`/v1/responses`, with the store of what is kept."""
