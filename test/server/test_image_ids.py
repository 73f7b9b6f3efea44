"""Virtual ids of images begin anew while the prefix cache still knows the first ones: no image is taken for another."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support.vision_models import random_images
from support.vision_server import vision_server

from lightllm.cache.virtual_ids import END_OF_VIRTUAL_IDS, FIRST_VIRTUAL_ID
from lightllm.ipc.image_files import ImageFiles

pytestmark = pytest.mark.slow
COUNT = 12
TEXT = "Look at {image} there"


def test_an_image_that_gets_the_ids_of_another_does_not_get_its_answer(tmp_path: Path) -> None:
    old, *between, new = random_images(4)
    with vision_server(tmp_path / "model", "llava, converted", "--cache_capacity", "2") as served:
        expected = {
            index: served.reference.greedy(served.prompt(TEXT, [image]), COUNT)
            for index, image in enumerate([old, *between, new])
        }
        assert expected[0] != expected[3]
        assert served.generate(TEXT, [old], COUNT) == expected[0]

        tokens = served.prompt_tokens([old])
        folder = served.runtime_folder() / "images"
        # What the next Cache Manager goes on with: ids for two more images.
        (folder / "ids").write_bytes(msgspec.msgpack.encode([0, END_OF_VIRTUAL_IDS - 2 * tokens - 1, []]))
        served.server.child("cache").kill()
        for index, image in enumerate(between, 1):
            assert served.generate(TEXT, [image], COUNT) == expected[index]
        answer = served.post("/generate", served.body(TEXT, [new], max_new_tokens=COUNT)).json()
        files = ImageFiles(folder)
        firsts = [files.open_embedding(number).header.first_id for number, whole in files.items() if whole]
        assert FIRST_VIRTUAL_ID in firsts, "the new image has other ids than the old one had"
        assert [token["id"] for token in answer["tokens"]] == expected[3]
        assert answer["cached_tokens"] == 0

        again = served.post("/generate", served.body(TEXT, [new], max_new_tokens=COUNT)).json()
        assert [token["id"] for token in again["tokens"]] == expected[3]
        assert again["cached_tokens"] >= tokens
        assert served.generate(TEXT, [old], COUNT) == expected[0]
