"""What a server tells about its prefix cache, block by block: vLLM's KV events, on vLLM's wire.

    PUB      topic, sequence number (8 bytes, big endian), batch (msgpack)
    ROUTER   asked with a sequence number: each batch from there on as (b"", number, batch), then (b"", -1, b"").
             Of batches that are no longer kept, or too many, or of another life of the server: one batch that clears and holds
             all blocks, with the number of the last one. A number follows the one before it, or its batch begins with a clear

A block is 64 tokens, and its key stands for all tokens up to its end, so that the blocks of a prompt are known by its token ids
alone: `chain_keys`. Names and order of the fields are those of vllm.distributed.kv_events (0.11).
"""

from __future__ import annotations

import base64
import hashlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

BLOCK_TOKENS = 64
BLOCK_BYTES = 4 * BLOCK_TOKENS
"""Token ids are int32, little endian."""
MEDIUM = "GPU"
"""Where blocks are: vLLM's word for the memory of the device, whatever it is."""
END = (-1).to_bytes(8, "big", signed=True)
PROMPT_ASKS = b"x-lightllm-prompt-blocks"
"""Header of a request: the answer is to tell the keys of its prompt's blocks."""
PROMPT_TELLS = "x-lightllm-prompt-blocks"
"""Header of an answer: `<tokens of the prompt>;<blocks between two keys>;<keys, 8 bytes each, base64>`."""
MOST_KEYS = 512
"""In that header; of more blocks every second, fourth, ... key is told."""


class BlockStored(msgspec.Struct, array_like=True, omit_defaults=True, tag=True):
    block_hashes: list[int]
    """One after the other."""
    parent_block_hash: int | None
    """Of the block before them."""
    token_ids: list[int]
    """Of all of them; empty where the server does not tell."""
    block_size: int
    lora_id: int | None = None
    medium: str | None = None


class BlockRemoved(msgspec.Struct, array_like=True, omit_defaults=True, tag=True):
    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, array_like=True, omit_defaults=True, tag=True):
    pass


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    """Seconds since 1970."""
    events: list[KvEvent]


def tell_prompt(token_ids: Sequence[int]) -> bytes:
    """The value of `PROMPT_TELLS`."""
    keys = chain_keys(array("i", token_ids).tobytes())
    step = 1
    while len(keys) > MOST_KEYS * step:
        step *= 2
    told = b"".join(key.to_bytes(8) for key in keys[step - 1 :: step])
    return b"%d;%d;%b" % (len(token_ids), step, base64.b64encode(told))


class ToldPrompt(NamedTuple):
    tokens: int
    step: int
    """Blocks from one key to the next; the first key is of block number `step` (from 1)."""
    keys: list[int]


def read_prompt(value: str) -> ToldPrompt:
    """Raises ValueError."""
    tokens, step, coded = value.split(";")
    data = base64.b64decode(coded, validate=True)
    if len(data) % 8 or len(data) > 8 * MOST_KEYS or int(step) < 1 or int(tokens) < 0:
        raise ValueError("no keys of blocks")
    keys = [int.from_bytes(data[start : start + 8]) for start in range(0, len(data), 8)]
    return ToldPrompt(int(tokens), int(step), keys)


def chain_keys(data: bytes, before: bytes = b"") -> list[int]:
    """The keys of the whole blocks of `data`, 64 bits each. before: the key of the block in front, 8 bytes; b"": none."""
    keys = []
    key = before
    for start in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        key = hashlib.blake2b(key + data[start : start + BLOCK_BYTES], digest_size=8).digest()
        keys.append(int.from_bytes(key))
    return keys
