"""What a model writes, taken apart: between the text of an answer and what a client gets of it."""
