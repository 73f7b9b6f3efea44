"""One encode an image, however many requests wait for it; each request is answered once, when nothing is left to wait for."""

from lightllm.protocol.images import Encode, Encoded, EncodeItem, Withdraw
from lightllm.visual.encode_queue import EncodeQueue
from lightllm.visual.encoder import BatchLimits


def item(item_id, tokens=1):
    return EncodeItem(item_id, f"key-{item_id}", 2**24 + item_id, tokens)


def encode(worker, ticket, *items):
    return Encode(worker, ticket, [item(number) for number in items])


def test_ten_requests_with_one_image_are_one_item_and_ten_answers():
    queue = EncodeQueue(lambda item_id: False)
    for ticket in range(10):
        assert not queue.add(encode(ticket % 2, ticket, 5))
    assert queue.next_batch(BatchLimits(8, 100)) == [item(5)]
    assert sorted(queue.finish(5), key=lambda answer: answer[1].ticket) == [
        (ticket % 2, Encoded(ticket, encoded=int(ticket == 0))) for ticket in range(10)
    ]
    assert not queue


def test_a_request_is_answered_when_its_last_image_is_done_with_the_errors_of_its_own_images():
    queue = EncodeQueue(lambda item_id: False)
    queue.add(encode(0, 1, 5, 6))
    queue.add(encode(0, 2, 6))
    queue.add(encode(0, 3, 5, 5))
    assert queue.next_batch(BatchLimits(1, 100)) == [item(5)]
    assert queue.finish(5, "no image") == [(0, Encoded(3, {5: "no image"}))]
    assert queue.finish(6) == [(0, Encoded(1, {5: "no image"}, 1)), (0, Encoded(2))]


def test_what_has_its_embedding_is_answered_at_once():
    queue = EncodeQueue({5}.__contains__)
    assert queue.add(encode(3, 1, 5)) == [(3, Encoded(1))]
    assert not queue.add(encode(3, 2, 5, 6))
    assert queue.next_batch(BatchLimits(8, 100)) == [item(6)] and queue.finish(6) == [(3, Encoded(2, {}, 1))]


def test_batches_take_what_has_waited_longest_and_may_mix_requests():
    queue = EncodeQueue(lambda item_id: False)
    queue.add(encode(0, 1, 9, 3))
    queue.add(encode(1, 2, 4))
    assert [entry.item_id for entry in queue.next_batch(BatchLimits(2, 100))] == [9, 3]
    queue.finish(9)
    queue.finish(3)
    assert [entry.item_id for entry in queue.next_batch(BatchLimits(2, 100))] == [4]


def test_a_ticket_that_is_withdrawn_is_not_answered_and_takes_its_items_along_unless_others_want_them():
    queue = EncodeQueue(lambda item_id: False)
    queue.add(encode(0, 1, 5, 6))
    queue.add(encode(1, 1, 6, 7))
    queue.withdraw(Withdraw(0, 1))
    queue.withdraw(Withdraw(0, 1))
    queue.withdraw(Withdraw(0, 2))
    assert [entry.item_id for entry in queue.next_batch(BatchLimits(9, 100))] == [6, 7] and queue.workers == {
        1
    }
    assert not queue.finish(6)
    queue.withdraw(Withdraw(1, 1))
    assert not queue and not queue.workers
    queue.add(encode(0, 1, 5))
    assert queue.finish(5) == [(0, Encoded(1, encoded=1))]


def test_a_ticket_that_comes_again_while_it_waits_is_answered_once():
    queue = EncodeQueue(lambda item_id: False)
    queue.add(encode(0, 1, 5))
    assert not queue.add(encode(0, 1, 5))
    assert queue.finish(5) == [(0, Encoded(1, encoded=1))]


def test_a_batch_has_no_more_tokens_than_it_may_but_for_one_large_image():
    queue = EncodeQueue(lambda item_id: False)
    queue.add(Encode(0, 1, [item(1, 40), item(2, 60), item(3, 1), item(4, 101), item(5, 1)]))

    def batch():
        items = [entry.item_id for entry in queue.next_batch(BatchLimits(3, 100))]
        for item_id in items:
            queue.finish(item_id)
        return items

    assert [batch() for _ in range(4)] == [[1, 2], [3], [4], [5]]
