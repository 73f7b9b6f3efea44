"""Tensor parallel building blocks of models: linear, norm, rotary embedding, attention, MLP activation, embedding."""
