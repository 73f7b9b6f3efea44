"""Which rounds prefill: beside the decode rows, before them, or in turns with them (`--round_policy`)."""

from __future__ import annotations


class RoundPolicy:
    """What the planner asks before it fills a round.

    mixed          decode rows first, prefill chunks in what they leave of the token budget: no stream stalls
    prefill_first  prompts in rounds of their own, as soon as there are any: the first token comes early, streams stall
    decode_first   prompts in rounds of their own, after each of which the streams get `--router_max_wait_tokens` rounds
    """

    def __init__(self, name: str, decode_rounds: int = 0) -> None:
        """`decode_rounds`: between two rounds of prefill, while anybody decodes; for decode_first only."""
        self.mixes = name == "mixed"
        """Decode rows and prefill chunks share rounds."""
        self.decode_rounds = decode_rounds if name == "decode_first" else 0
        self._waited = 0

    def may_prefill(self, decoding: bool) -> bool:
        """Whether the next round may have prefill chunks. `decoding`: there are decode rows for it."""
        return self.mixes or not decoding or self._waited >= self.decode_rounds

    def planned(self, prefill: bool) -> None:
        """A round has been planned, with prefill chunks or without."""
        self._waited = 0 if prefill else self._waited + 1
