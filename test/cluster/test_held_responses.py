"""Responses that one worker keeps are found through the controller by those who asked for them, and requests are ended wherever they
run."""

import httpx
import pytest
from aiohttp import web
from cluster.conftest import MockWorker, RunningController

from lightllm.cluster.ask import ask_of
from lightllm.cluster.held_responses import HeldResponses
from lightllm.cluster.registry import Registry


class Keeper(MockWorker):
    """Keeps the responses that it makes; says that it is a server of ours."""

    more_paths = (
        "/get_server_info",
        "/get_model_name",
        "/v1/responses/{name}",
        "/v1/responses/{name}/input_items",
    )

    def __init__(self) -> None:
        self.kept: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.aborted: list[str] = []
        super().__init__()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/abort_request":
            self.aborted.append((await request.json())["request_id"])
            return web.json_response({"message": "Ok"})
        if path == "/flush_cache":
            return web.json_response({"message": "Ok", "flushed_tokens": 7})
        if path.endswith("/cancel"):
            return self._of(request, {"status": "cancelled"})
        body = await request.json()
        if path != "/v1/responses":
            return await super()._answer(request)
        previous = body.get("previous_response_id")
        if previous and previous not in self.kept:
            return web.json_response({"error": {"message": "gone"}}, status=400)
        made = f"resp_{id(self):x}{len(self.kept)}"
        self.kept[made] = [*self.kept.get(previous, ()), body["input"]]
        whole = {"id": made, "metadata": {"id": "resp_of_somebody_else"}, "turns": self.kept[made]}
        if not body.get("stream"):
            return web.json_response(whole)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b'event: response.created\ndata: {"response": {"id": "%b"}}\n\n' % made.encode())
        return answer

    async def _list(self, request: web.Request) -> web.Response:
        if request.path == "/v1/models":
            return await super()._list(request)
        if request.path == "/v1/responses/input_tokens":
            return web.json_response({"turns": self.kept[(await request.json())["previous_response_id"]]})
        if request.path in ("/get_server_info", "/get_model_name"):
            return web.json_response({"max_total_token_num": 4096, "from": self.url})
        return self._of(request, {"from": self.url, "query": request.query_string})

    def _of(self, request: web.Request, more: dict) -> web.Response:
        name = request.path.split("/")[3]
        self.asked.append(request.path)
        if name not in self.kept:
            return web.json_response({"error": {"message": "no"}}, status=404)
        if request.method == "DELETE":
            del self.kept[name]
        return web.json_response({"id": name, **more})


@pytest.fixture
def keepers(start):
    def begin(count: int = 3, **options) -> tuple[RunningController, list[Keeper]]:
        workers = [start(Keeper) for _ in range(count)]
        running = start(RunningController, workers=[worker.url for worker in workers], **options)
        running.wait_for(lambda: len(running.registry) == count)
        return running, workers

    return begin


def create(running, text: str = "hello", key: str = "", **more) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(
        running.url + "/v1/responses", json={"model": "m", "input": text, **more}, headers=headers
    )


def test_a_response_is_read_listed_cancelled_and_deleted_where_it_is(keepers):
    running, workers = keepers()
    made = [create(running, f"turn {number}").json()["id"] for number in range(6)]
    assert all(worker.kept for worker in workers)
    for name in made:
        (holder,) = [worker for worker in workers if name in worker.kept]
        url = f"{running.url}/v1/responses/{name}"
        answer = httpx.get(url + "?stream=false").json()
        assert answer == {"id": name, "from": holder.url, "query": "stream=false"}
        assert httpx.get(url + "/input_items").json()["from"] == holder.url
        assert httpx.post(url + "/cancel").json()["status"] == "cancelled"
        assert httpx.delete(url).status_code == 200 and name not in holder.kept
        assert httpx.get(url).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_stays_with_the_worker_that_holds_it(keepers, stream):
    running, workers = keepers(dispatch_method="round_robin")
    first = create(running, "one", stream=stream)
    (holder,) = [worker for worker in workers if worker.kept]
    (previous,) = holder.kept
    assert previous in first.text
    for text in ("two", "three"):
        answer = create(running, text, previous_response_id=previous).json()
        previous = answer["id"]
        counted = httpx.post(
            running.url + "/v1/responses/input_tokens", json={"model": "m", "input": "x", "previous_response_id": previous}
        )  # fmt: skip
        assert counted.json()["turns"] == answer["turns"]
    assert answer["turns"] == ["one", "two", "three"] and len(holder.kept) == 3


def test_a_holder_that_drains_still_goes_on_with_its_conversations(keepers):
    running, workers = keepers(2)
    previous = create(running, "one").json()["id"]
    (holder,) = [worker for worker in workers if worker.kept]
    httpx.post(running.url + "/workers/drain", params={"url": holder.url})
    assert create(running, "two", previous_response_id=previous).json()["turns"] == ["one", "two"]
    assert create(running, "another").json()["id"] not in holder.kept


def test_what_a_controller_does_not_know_all_workers_are_asked_for(keepers):
    running, workers = keepers()
    workers[1].kept["resp_before"] = ["one"]
    answer = create(running, "two", previous_response_id="resp_before").json()
    assert answer["turns"] == ["one", "two"]
    asked = sum(len(worker.asked) for worker in workers)
    assert httpx.get(running.url + "/v1/responses/resp_before").json()["from"] == workers[1].url
    assert sum(len(worker.asked) for worker in workers) == asked + 1  # it is known by now


@pytest.mark.parametrize(
    "name", ["resp_nobodys", "..", "%2e%2e", "a%3Fb", "x" * 200, "resp_of_somebody_else"]
)
def test_what_nobody_holds_is_not_found_as_on_a_server(keepers, name):
    running, workers = keepers(2)
    create(running)
    answer = httpx.get(f"{running.url}/v1/responses/{name}")
    assert answer.status_code == 404
    answer = create(running, previous_response_id="resp_nobodys")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "previous_response_not_found")
    assert answer.json()["error"]["param"] == "previous_response_id"


def test_a_holder_that_is_away_is_overload_and_no_word_of_not_found(keepers):
    running, workers = keepers(2)
    name = create(running).json()["id"]
    (holder,) = [worker for worker in workers if worker.kept]
    holder.run(holder._runner.cleanup())
    answers = {httpx.get(f"{running.url}/v1/responses/{each}").status_code for each in (name, "resp_other")}
    assert answers <= {502, 503}


def test_with_keys_of_the_controller_a_response_is_its_callers(keepers):
    running, workers = keepers(2, api_key=["mine", "theirs"], admin_api_key=["admin"])
    name = create(running, key="mine").json()["id"]
    url = f"{running.url}/v1/responses/{name}"
    for key, status in (("theirs", 404), ("mine", 200)):
        assert httpx.get(url, headers={"x-api-key": key}).status_code == status
        previous = create(running, key=key, previous_response_id=name)
        assert previous.status_code == (400 if status == 404 else 200)
    abort = {"request_id": name}
    httpx.post(running.url + "/abort_request", json=abort, headers={"x-api-key": "theirs"})
    assert not any(worker.aborted for worker in workers)
    httpx.post(running.url + "/abort_request", json=abort, headers={"x-api-key": "mine"})
    assert {name} == {each for worker in workers for each in worker.aborted}
    flushed = [
        httpx.post(running.url + "/flush_cache", headers={"x-api-key": key}) for key in ("mine", "admin")
    ]
    assert [answer.status_code for answer in flushed] == [403, 200]


def test_an_abort_and_a_flush_reach_all_workers(keepers):
    running, workers = keepers()
    answer = httpx.post(running.url + "/abort_request", json={"request_id": "some"})
    assert answer.json() == {"message": "Ok"}
    assert [worker.aborted for worker in workers] == [["some"]] * 3
    assert httpx.post(running.url + "/abort_request", json={}).status_code == 400
    answer = httpx.post(running.url + "/flush_cache").json()
    assert (answer["flushed_tokens"], answer["failed"]) == (21, [])


def test_what_servers_say_of_their_model_any_of_them_says(keepers):
    running, workers = keepers(2)
    assert httpx.get(running.url + "/get_model_name").json()["from"] in {worker.url for worker in workers}
    assert httpx.get(running.url + "/get_model_name?model=other").status_code == 404


def test_the_memory_of_holders_is_bounded_in_number_and_in_time():
    now = [0.0]
    registry = Registry()
    held = HeldResponses(registry, None, lambda: now[0], seconds=10.0, most=3, asks=False)  # type: ignore[arg-type]
    worker = type("W", (), {"url": "u"})()
    for number in range(5):
        held.remember(f"resp_{number}", worker, "")
    assert [held.is_of(f"resp_{number}", "") for number in range(5)] == [False, False, True, True, True]
    now[0] = 11.0
    held.remember("resp_late", worker, "")
    assert len(held) == 1


def test_a_reference_to_an_item_needs_the_worker_of_its_response():
    number = "0123456789abcdef" * 3
    item = {"type": "item_reference", "id": f"msg_{number}_0"}
    assert ask_of({"input": [{"role": "user", "content": "a"}, item]}, "m").follows == f"resp_{number}"
    assert (
        ask_of({"input": [{"type": "message", "id": f"msg_{number}_0", "content": "a"}]}, "m").follows == ""
    )
