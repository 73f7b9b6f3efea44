"""Messages about images: calls of the Cache Manager Server, and work of the Visual Server.

    Http Server   --Encode, Withdraw-->              Visual Server   (ZMQ; bound by the Visual Server)
    Visual Server --Encoded, EncoderProgress, EncoderReady--> Http Server (ZMQ; its result socket)
    Http Server   --introduce, hold, stored, release--> Cache Manager (rpyc, answered)
    Visual Server --encoded, failed-->               Cache Manager   (rpyc, answered)
    Visual Server --EncodePixels, Rejoin-->          its other tensor parallel ranks (ZMQ; bound by each)

An item is one content in the cache: an image's bytes together with how they are processed. `item_id` is never used twice.
"""

from __future__ import annotations

import msgspec

from lightllm.protocol.arrays import Array


class Want(msgspec.Struct, array_like=True, frozen=True):
    """One image that a request needs."""

    key: str
    """Content key: SHA-256 of the bytes and a fingerprint of the processing."""
    tokens: int
    """Positions that it takes in the prompt, at least one."""
    size: int
    """Bytes that its files may take: `ipc.image_files.largest_size`."""


class Hold(msgspec.Struct, array_like=True, frozen=True):
    """rpyc `hold`: a reference for each, or for none of them. The answer is `HeldItems` or `Full`."""

    wants: list[Want]


class Held(msgspec.Struct, array_like=True, frozen=True):
    item_id: int
    first_id: int
    """The image's tokens have the virtual ids [first_id, first_id + tokens)."""
    tokens: int
    has_data: bool
    """The image's bytes, or what was made of them, are in a file: there is nothing to write."""
    has_embedding: bool
    """There is nothing to encode."""


class HeldItems(msgspec.Struct, array_like=True, frozen=True, tag="held"):
    """In the order of the wants."""

    items: list[Held]
    cycle: int
    """How often all virtual ids have been used up. A worker that meets a new number flushes the prefix cache before it uses
    the ids: they had other meanings."""


class Full(msgspec.Struct, array_like=True, frozen=True, tag="full"):
    """Nothing was held."""

    reason: str
    never: bool = False
    """It would not fit into an empty cache either."""


HoldAnswer = HeldItems | Full


class Holding(msgspec.Struct, array_like=True, frozen=True):
    """An item that a client has references to."""

    item_id: int
    key: str
    tokens: int
    size: int
    references: int


class Introduce(msgspec.Struct, array_like=True, frozen=True):
    """rpyc `introduce`: the first call of a connection. The answer is a `Welcome`."""

    worker: int
    """Number of the Http worker; -1 for other processes."""
    holding: list[Holding] = []
    """What the client held at a Cache Manager that is gone: it keeps the same items, ids included."""


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    lost: list[int]
    """Items that the client no longer holds."""


class ItemIds(msgspec.Struct, array_like=True, frozen=True):
    """rpyc `release` (one reference each), `stored` (data files are written), `encoded` (embedding files are), `failed` (they
    cannot be made). No answer."""

    item_ids: list[int]


class CacheStats(msgspec.Struct, array_like=True, frozen=True):
    """rpyc `stats`. The first five are of now, the others count since the Cache Manager's start."""

    items: int
    referenced: int
    """Items that some client holds."""
    references: int
    size: int
    """Bytes that are taken or reserved."""
    cycle: int
    hits: int
    """Wants whose item was there."""
    misses: int
    evicted: int
    full: int
    """Holds that were not granted."""
    restored: int
    """Items that an earlier Cache Manager left."""


Parameters = dict[str, int | float | str | bool]
"""How an image is processed, in the words of its model's family."""

MAX_TILES = "max_tiles"
"""`Parameters`: the most tiles that an image is cut into; without it as many as the model was made for."""


class EncodeItem(msgspec.Struct, array_like=True, frozen=True):
    item_id: int
    key: str
    first_id: int
    tokens: int
    params: Parameters = {}


class Encode(msgspec.Struct, array_like=True, frozen=True, tag="encode"):
    """Have the embeddings of these items written, and be told by an `Encoded`."""

    worker: int
    ticket: int
    """Unique, also among those of earlier lives of the worker. Sent again, it is answered again."""
    items: list[EncodeItem]


class Withdraw(msgspec.Struct, array_like=True, frozen=True, tag="withdraw"):
    """No answer is wanted to the `Encode` with this ticket. Its items are not encoded, unless others wait for them or their encode
    has begun."""

    worker: int
    ticket: int


ToVisual = Encode | Withdraw


class Encoded(msgspec.Struct, array_like=True, frozen=True, tag="encoded"):
    """The answer to the `Encode` with this ticket: all items but these have their embeddings."""

    ticket: int
    errors: dict[int, str] = {}
    """Item id -> what went wrong."""
    encoded: int = 0
    """Items that were encoded for this ticket first; other tickets that waited for them do not count them."""


class EncoderProgress(msgspec.Struct, array_like=True, frozen=True, tag="encoder_progress"):
    """A batch has been encoded, and something of this Http worker's waits still."""

    rank: int


class EncoderReady(msgspec.Struct, array_like=True, frozen=True, tag="encoder_ready"):
    """A Visual Server has started, and knows no ticket: what is unanswered is to be sent again."""

    rank: int


class PixelArray(msgspec.Struct, array_like=True, frozen=True):
    """One image as the encoder takes it: `models.vision.model.Pixels`."""

    values: Array
    grid: tuple[int, int] | None


class EncodePixels(msgspec.Struct, array_like=True, frozen=True, tag="encode_pixels"):
    """All ranks compute these images together; rank 0 has the result."""

    images: list[PixelArray]


class Rejoin(msgspec.Struct, array_like=True, frozen=True, tag="rejoin"):
    """A rank has failed: all join their group anew, as its next generation."""


ToEncoderRank = EncodePixels | Rejoin
