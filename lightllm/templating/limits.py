"""What one rendering may cost."""

from __future__ import annotations

import dataclasses

MAX_RENDERED_CHARACTERS = 64 * 1024 * 1024
"""A conversation that renders to more than this is refused."""
MAX_CONVERSATION_BYTES = 64 * 1024 * 1024
"""Largest conversation, as JSON, that is handed to a template."""
MAX_TEMPLATE_CHARACTERS = 1024 * 1024
"""Longest template; published ones have up to 20,000 characters."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one compilation or one conversation. Ordinary ones take milliseconds."""

    cpu_seconds: float = 5.0
    """Processor time, not wall-clock: a busy machine refuses nothing."""
    memory_mib: int = 512
    """Address space beyond what a child has before its first template."""
    wall_seconds: float = 120.0
    """For a child that gets no processor time at all, e.g. a stopped one."""

    def memory_bytes(self, conversation_bytes: int) -> int:
        """A long conversation exists several times: as bytes, as messages, as pieces and as the whole text."""
        return (self.memory_mib << 20) + 16 * conversation_bytes
