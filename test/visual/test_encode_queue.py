"""One encode an image, however many requests wait for it; each request is answered once, when nothing is left to wait for."""

from lightllm.protocol.images import Encode, Encoded, EncodeItem
from lightllm.visual.encode_queue import EncodeQueue


def item(item_id):
    return EncodeItem(item_id, f"key-{item_id}", 2**24 + item_id, 1)


def encode(worker, ticket, *items):
    return Encode(worker, ticket, [item(number) for number in items])


def test_ten_requests_with_one_image_are_one_item_and_ten_answers():
    queue = EncodeQueue(lambda item_id: False)
    for ticket in range(10):
        assert not queue.add(encode(ticket % 2, ticket, 5))
    assert queue.next_batch(8) == [item(5)]
    assert sorted(queue.finish(5), key=lambda answer: answer[1].ticket) == [
        (ticket % 2, Encoded(ticket, encoded=int(ticket == 0))) for ticket in range(10)
    ]
    assert not queue


def test_a_request_is_answered_when_its_last_image_is_done_with_the_errors_of_its_own_images():
    queue = EncodeQueue(lambda item_id: False)
    queue.add(encode(0, 1, 5, 6))
    queue.add(encode(0, 2, 6))
    queue.add(encode(0, 3, 5, 5))
    assert queue.next_batch(1) == [item(5)]
    assert queue.finish(5, "no image") == [(0, Encoded(3, {5: "no image"}))]
    assert queue.finish(6) == [(0, Encoded(1, {5: "no image"}, 1)), (0, Encoded(2))]


def test_what_has_its_embedding_is_answered_at_once():
    queue = EncodeQueue({5}.__contains__)
    assert queue.add(encode(3, 1, 5)) == [(3, Encoded(1))]
    assert not queue.add(encode(3, 2, 5, 6))
    assert queue.next_batch(8) == [item(6)] and queue.finish(6) == [(3, Encoded(2, {}, 1))]


def test_batches_take_what_has_waited_longest_and_may_mix_requests():
    queue = EncodeQueue(lambda item_id: False)
    queue.add(encode(0, 1, 9, 3))
    queue.add(encode(1, 2, 4))
    assert [entry.item_id for entry in queue.next_batch(2)] == [9, 3]
    queue.finish(9)
    queue.finish(3)
    assert [entry.item_id for entry in queue.next_batch(2)] == [4]
