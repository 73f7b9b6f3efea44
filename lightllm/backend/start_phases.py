"""The parts of a backend's start: their names in the start-up table, what is said of each, and what helps where memory runs out."""

from __future__ import annotations

_LOWER = "Lower --mem_fraction or --max_total_token_num, or the largest round: --batch_max_tokens, --chunked_prefill_size."
PHASES = {
    "constraints": ("reading the tokenizer", "Give --output_constraint_mode none."),
    "other ranks": ("waiting for the other ranks", "See what else runs on these devices."),
    "weights": ("loading weights", "Take a smaller model or --data_type, or more GPUs with --tp."),
    "kv memory": ("reserving KV memory", _LOWER),
    "warm-up": ("warming up", _LOWER),
    "graphs": (
        "capturing decode graphs",
        "Lower --mem_fraction, --max_total_token_num or --graph_max_batch_size, or give --disable_cudagraph.",
    ),
}
"""What happens in each part of the start, and what to do if memory runs out in it."""
