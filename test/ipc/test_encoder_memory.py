"""What encoders take is known to the language model before it sizes its own memory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lightllm.errors import StartupError
from lightllm.ipc.encoder_memory import EncoderMemory, wait_for_encoder_memory, write_encoder_memory
from lightllm.ipc.runtime_dir import RuntimeDir


def test_the_memory_of_several_encoders_is_waited_for_and_added_up(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path)
    assert wait_for_encoder_memory(runtime, [], 0.0) == EncoderMemory()
    write_encoder_memory(runtime, 0, EncoderMemory(10, 3))
    with pytest.raises(StartupError, match="visual-1 has not loaded"):
        wait_for_encoder_memory(runtime, [0, 1], 0.0)
    later = threading.Timer(0.05, write_encoder_memory, (runtime, 1, EncoderMemory(20, 4)))
    later.start()
    assert wait_for_encoder_memory(runtime, [0, 1], 60.0) == EncoderMemory(30, 7)
    later.join()
