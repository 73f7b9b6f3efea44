"""Tensor parallel groups: which rank this is, and how ranks add and join their parts."""
