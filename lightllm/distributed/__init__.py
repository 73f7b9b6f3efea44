"""Tensor parallel groups: who this rank is, and how ranks add and join their parts."""
