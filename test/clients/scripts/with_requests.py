"""requests, as the scripts of LightLLM's documents use it: /generate from many threads, streams read line by line and chunk by
chunk, chats with functions, lists of prompts and of token ids."""

import json
import threading

import requests
from meeting import AGENT, CAPITAL, DEMO, KEY, SUM, TOOL

HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
MODEL = "your_model_name"


def post(path: str, body: dict, url: str = DEMO, stream: bool = False) -> requests.Response:
    response = requests.post(url + path, headers=HEADERS, data=json.dumps(body), stream=stream, timeout=60)
    assert response.status_code == 200, response.text
    return response


def generate() -> None:
    plain = {"inputs": "San Francisco is a", "parameters": {"do_sample": False}}
    assert isinstance(post("/generate", plain).json()["generated_text"][0], str)
    constrained = {"do_sample": False, "regular_constraint": r"-?\d+"}
    answer = post("/generate", {"inputs": "(100+1+3)*2=", "parameters": constrained}).json()
    assert answer["generated_text"][0].lstrip("-").isdigit() and answer["finish_reason"] == "stop"
    answers: list[dict] = []
    long = plain | {"parameters": {"do_sample": False, "ignore_eos": True, "max_new_tokens": 50}}
    threads = [
        threading.Thread(target=lambda: answers.append(post("/generate", long).json())) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer["count_output_tokens"] for answer in answers] == [50] * 20
    assert len({answer["generated_text"][0] for answer in answers}) == 1


def generate_streams() -> None:
    body = {"inputs": CAPITAL, "parameters": {"do_sample": False, "max_new_tokens": 20}}
    whole = post("/generate", body).json()["generated_text"][0]
    lines = [line for line in post("/generate_stream", body, stream=True).iter_lines() if line]
    events = [json.loads(line.decode()[5:]) for line in lines]
    assert "".join(event["token"]["text"] for event in events) == whole
    assert [event["finished"] for event in events] == [False] * (len(events) - 1) + [True]
    chunks = [
        chunk for chunk in post("/generate_stream", body, stream=True).iter_content(8192) if chunk.strip()
    ]
    assert [json.loads(chunk[5:])["token"]["text"] for chunk in chunks] == [
        event["token"]["text"] for event in events
    ]


def chats() -> None:
    ask = {
        "model": MODEL,
        "messages": [{"role": "user", "content": CAPITAL}],
        "temperature": 0,
        "max_tokens": 1000,
    }
    whole = post("/v1/chat/completions", ask).json()["choices"][0]["message"]["content"]
    texts = []
    for line in post("/v1/chat/completions", ask | {"stream": True}, stream=True).iter_lines():
        if line and line.decode() != "data: [DONE]":
            texts.append(
                json.loads(line.decode().removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
            )
    assert "".join(texts) == whole and "Paris" in whole
    turn = ask | {"messages": [{"role": "user", "content": SUM}], "tools": [TOOL], "tool_choice": "auto"}
    choice = post("/v1/chat/completions", turn, AGENT).json()["choices"][0]
    assert (
        choice["finish_reason"] == "tool_calls"
        and choice["message"]["tool_calls"][0]["function"]["name"] == "add"
    )


def completions() -> None:
    ask = {"model": MODEL, "temperature": 0, "max_tokens": 20}
    ids = post("/tokenize", {"prompt": CAPITAL}).json()["tokens"]
    texts = [
        choice["text"]
        for prompt in ([CAPITAL, CAPITAL], [ids, ids])
        for choice in post("/v1/completions", ask | {"prompt": prompt}).json()["choices"]
    ]
    assert len(texts) == 4 and len(set(texts)) == 1 and "Paris" in texts[0], texts
    ones = []
    for chunk in post("/v1/completions", ask | {"prompt": CAPITAL, "stream": True}, stream=True).iter_content(
        8192
    ):
        if chunk.strip() and b"[DONE]" not in chunk:
            ones.append(json.loads(chunk.decode().removeprefix("data: "))["choices"][0]["text"])
    assert "".join(ones) == texts[0]


generate()
generate_streams()
chats()
completions()
print("done")
