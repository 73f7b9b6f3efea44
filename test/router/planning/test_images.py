"""Images of a prompt on their way through the Router: checked, and told to the backend whenever their request enters a row."""

from __future__ import annotations

import msgspec
import pytest
from support.router_device import Engine, add_request, make_limits

from lightllm.errors import InvalidParameter
from lightllm.protocol.messages import Choice, ImageSpan
from lightllm.protocol.rounds import Round

PROMPT = list(range(1, 31))
IMAGES = [ImageSpan(2, 6, item_id=5, grid=(1, 2, 3)), ImageSpan(8, 4, item_id=9)]


def joined_images(engine: Engine) -> list[list[ImageSpan]]:
    return [join.images for round_ in engine.sent if isinstance(round_, Round) for join in round_.joins]


def test_every_join_of_a_request_names_its_images_also_of_one_that_is_restored_or_computed_anew() -> None:
    engine = Engine(make_limits(batch_max_tokens=16, chunked_prefill_size=8))
    message = msgspec.structs.replace(add_request(1, PROMPT, 4, ignore_eos=True), images=IMAGES)
    choices = [Choice(2, 0)]
    engine.add(message)
    engine.add(msgspec.structs.replace(message, choices=choices, restored=True))
    engine.add(add_request(3, PROMPT, 4))
    engine.plan()
    engine.execute("memory")
    engine.run()
    images = joined_images(engine)
    assert len(images) > 3 and images.count([]) < len(images)
    assert all(named in ([], IMAGES) for named in images)
    assert images.count(IMAGES) >= 2 * images.count([])


@pytest.mark.parametrize(
    "images",
    [
        [ImageSpan(-1, 3, 0)],
        [ImageSpan(2, 0, 0)],
        [ImageSpan(2, 4, 0), ImageSpan(5, 2, 1)],
        [ImageSpan(8, 2, 0), ImageSpan(2, 2, 1)],
        [ImageSpan(28, 3, 0)],
        [ImageSpan(2, 6, 0, grid=(1, 2, 2))],
        [ImageSpan(2, 4, 0, grid=(1, -2, -2))],
    ],
)
def test_images_that_are_no_ascending_spans_of_the_prompt_are_refused(images: list[ImageSpan]) -> None:
    engine = Engine(make_limits())
    with pytest.raises(InvalidParameter, match="image"):
        engine.add(msgspec.structs.replace(add_request(1, PROMPT, 4), images=images))
