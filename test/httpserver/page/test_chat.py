"""The chat in a headless Chromium, before a scripted engine: what a person does, and what is then to be seen."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from support.agents import tokenizer_with, tokenizing
from support.browser import PHONE, open_page
from support.chat_templates import QWEN
from support.fake_engine import FakeEngine

from lightllm.parsers.chat_format import ChatFormat
from lightllm.parsers.families import HERMES
from lightllm.parsers.reasoning import THINK

pytestmark = pytest.mark.slow

MARKDOWN = """A **slot** for `one` token:

1. first
2. second
   - inner

```python
if a < b:
    pass
```

| a | b |
|---|--:|
| 1 | 2 |

[safe](https://example.org/x) [unsafe](javascript:alert(1)) ![pixel](https://example.org/p.png) <img src=x onerror=alert(1)>"""


def answer(page: Any, number: int = -1) -> Any:
    """The text of an answer; of the last one."""
    texts = page.get_by_role("article", name="Model").locator(".body > .text")
    return texts.last if number < 0 else texts.nth(number)


def offer(page: Any, function: str) -> None:
    """Offers the model a tool."""
    page.get_by_text("Tools and JSON").click()
    page.get_by_label("Tools", exact=True).fill(
        json.dumps([{"type": "function", "function": {"name": function}}])
    )


def wait_for_end(page: Any) -> None:
    page.locator("#messages[aria-busy=false]").wait_for()


def sent(engine: FakeEngine) -> int:
    return len(engine.added)


Ask = Callable[[str], None]


def test_what_is_typed_is_answered_and_outlives_a_reload(page: Any, ask: Ask, engine: FakeEngine) -> None:
    engine.script.answer = "one two of one"
    ask("Hello")
    wait_for_end(page)
    assert page.get_by_role("article", name="You").inner_text() == "You\nHello"
    assert answer(page).inner_text() == "one two of one"
    assert re.search(r"\d+ tokens", page.locator(".figures").inner_text())
    page.reload()
    assert answer(page).inner_text() == "one two of one"
    page.get_by_role("button", name="New chat").click()
    assert (
        page.get_by_role("article").count() == 0
        and page.get_by_text("What shall we talk about?").is_visible()
    )


def test_an_answer_grows_and_can_be_stopped(page: Any, ask: Ask, engine: FakeEngine) -> None:
    engine.script.endless, engine.script.halt_at = True, 10
    ask("Hello")
    engine.wait_for(lambda: answer(page).inner_text())
    short = answer(page).inner_text()
    engine.script.halt_at = 200
    engine.wait_for(lambda: len(answer(page).inner_text()) > len(short) + 30)
    assert page.get_by_role("button", name="Send", exact=True).is_hidden()
    page.keyboard.press("Escape")
    wait_for_end(page)
    engine.wait_for(lambda: engine.aborted)
    assert page.get_by_text("Stopped.").is_visible() and answer(page).inner_text().startswith(short.rstrip())
    assert page.get_by_role("button", name="Send", exact=True).is_visible()


def test_shift_enter_breaks_the_line(page: Any, ask: Ask, engine: FakeEngine) -> None:
    page.get_by_label("Message", exact=True).press_sequentially("one")
    page.keyboard.press("Shift+Enter")
    ask("two")
    wait_for_end(page)
    assert page.get_by_role("article", name="You").locator(".text").inner_text() == "one\ntwo"


def test_an_edited_message_is_answered_anew_and_what_followed_is_gone(
    page: Any, ask: Ask, engine: FakeEngine
) -> None:
    for text in ("first", "second"):
        ask(text)
        wait_for_end(page)
    assert page.get_by_role("article").count() == 4
    you = page.get_by_role("article", name="You").first
    you.hover()
    you.get_by_role("button", name="Edit message").click()
    page.get_by_label("Edited message").fill("changed")
    engine.script.answer = "another"
    page.keyboard.press("Enter")
    page.get_by_text("another").wait_for()
    wait_for_end(page)
    assert page.get_by_role("article").count() == 2
    assert you.locator(".text").inner_text() == "changed" and answer(page).inner_text() == "another"


def test_an_answer_is_regenerated(page: Any, ask: Ask, engine: FakeEngine) -> None:
    ask("Hello")
    wait_for_end(page)
    engine.script.answer = "another"
    page.get_by_role("button", name="Regenerate").click()
    page.get_by_text("another").wait_for()
    wait_for_end(page)
    assert page.get_by_role("article").count() == 2 and sent(engine) == 2


def test_the_settings_are_sent_and_kept(page: Any, ask: Ask, engine: FakeEngine) -> None:
    for label, value in (("Temperature", "0.5"), ("Top p", "0.25"), ("Top k", "7"), ("Max tokens", "3"), ("Seed", "11"),
                         ("Presence penalty", "1"), ("Frequency penalty", "-1"), ("Repetition penalty", "1.5")):  # fmt: skip
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Stop strings").fill("END\nline\\n")
    page.get_by_label("System prompt").fill("Be brief.")
    page.reload()
    ask("Hello")
    wait_for_end(page)
    params = engine.added[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.max_new_tokens, params.seed) == (
        0.5,
        0.25,
        7,
        3,
        11,
    )
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1, 1.5)
    assert list(params.stop_sequences) == ["END", "line\n"]
    page.get_by_role("button", name="curl").click()
    body = json.loads(page.locator("#curl-text").inner_text().split("-d '")[1].rstrip("'"))
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert page.get_by_text("Cut off at the token limit.").is_visible()


def test_a_token_shows_its_probability_and_its_rivals(page: Any, ask: Ask, engine: FakeEngine) -> None:
    engine.script.answer = "one **two** of"
    page.get_by_label("Token probabilities").check()
    ask("Hello")
    wait_for_end(page)
    card = page.locator("#token-card")
    answer(page).focus()
    page.keyboard.press("ArrowRight")
    assert "60.7 %" in card.locator(".chosen").inner_text()  # exp(-0.5)
    page.keyboard.press("ArrowRight")
    assert "22.3 %" in card.locator(".chosen").inner_text()  # exp(-1.5)
    page.keyboard.press("Escape")
    assert card.is_hidden()
    page.locator(".assistant strong").hover()
    card.get_by_text("%").first.wait_for()
    assert card.locator("tbody tr").count() == 5
    assert card.locator(".chosen code").inner_text() in "two"
    page.mouse.move(1, 1)
    assert card.is_hidden()


def test_markdown_becomes_elements_and_markup_stays_text(page: Any, ask: Ask, engine: FakeEngine) -> None:
    engine.script.answer = MARKDOWN
    ask("Hello")
    wait_for_end(page)
    text = answer(page)
    assert text.locator("strong").inner_text() == "slot" and text.locator("ol > li").count() == 2
    assert text.locator("ol ul li").inner_text() == "inner" and text.locator("td.right").inner_text() == "2"
    assert text.locator("pre code").inner_text() == "if a < b:\n    pass"
    links = text.get_by_role("link")
    assert [links.nth(i).get_attribute("href") for i in range(links.count())] == [
        "https://example.org/x", "https://example.org/p.png"
    ]  # fmt: skip
    assert links.first.get_attribute("rel") == "noopener noreferrer nofollow"
    assert text.locator("img").count() == 0 and "<img src=x onerror=alert(1)>" in text.inner_text()
    assert "[unsafe](javascript:alert(1))" in text.inner_text()


def test_the_curl_command_does_what_the_page_does(page: Any, worker: Any) -> None:
    page.get_by_label("Message", exact=True).fill("it's")
    page.get_by_role("button", name="curl").click()
    command = page.locator("#curl-text").inner_text()
    assert command.startswith(f"curl -N {worker.url}/v1/chat/completions")
    body = json.loads(command.split("-d '")[1].rstrip("'").replace("'\\''", "'"))
    assert body["messages"] == [{"role": "user", "content": "it's"}]
    answered = httpx.post(f"{worker.url}/v1/chat/completions", json=body)
    assert answered.status_code == 200 and "data: [DONE]" in answered.text


def test_reasoning_is_folded_and_tool_calls_are_answered(
    browser: Any, start_worker: Callable[..., Any], engine: FakeEngine, tmp_path: Path
) -> None:
    worker = start_worker(worker=1, chat_format=ChatFormat(HERMES, THINK))
    engine.ready(max_req_total_len=2048, slots_total=2048)
    call = {"name": "add", "arguments": {"a": 2}}
    engine.script.answer = f"<think>two of one</think>one<tool_call>{json.dumps(call)}</tool_call>"
    with (
        tokenizer_with(QWEN, tmp_path) as tokenizer,
        tokenizing(worker, tokenizer),
        open_page(browser, worker.url) as page,
    ):
        offer(page, "add")
        page.get_by_label("Message", exact=True).press_sequentially("Hello")
        page.keyboard.press("Enter")
        wait_for_end(page)
        assert answer(page).inner_text() == "one"
        reasoning = page.locator("details.reasoning")
        assert reasoning.locator(".text").is_hidden()
        reasoning.locator("summary").click()
        assert reasoning.locator(".text").inner_text() == "two of one"
        assert page.locator(".call figcaption").inner_text() == "calls add"
        assert json.loads(page.locator(".call pre").inner_text()) == {"a": 2}
        engine.script.answer = "It is four."
        page.get_by_label("Result of add, call 1").fill("4")
        page.get_by_role("button", name="Send results").click()
        page.get_by_role("article", name="Model").nth(1).wait_for()
        wait_for_end(page)
        assert page.get_by_role("article", name="Tool result").locator(".text").inner_text() == "4"
        assert answer(page).inner_text() == "It is four."
        prompt = tokenizer.decode(engine.added[-1].prompt_ids.tolist())
        assert '{"name": "add", "arguments": {"a": 2}}' in prompt
        assert re.search(r"<\|im_start\|>tool\s+4\b|<tool_response>\s*4\b", prompt), prompt
        page.get_by_role("button", name="curl").click()
        body = json.loads(page.locator("#curl-text").inner_text().split("-d '")[1].rstrip("'"))
        (sent,) = body["messages"][1]["tool_calls"]
        assert sent["function"] == {"name": "add", "arguments": json.dumps(call["arguments"])}
        assert body["messages"][2] == {"role": "tool", "tool_call_id": sent["id"], "content": "4"}


def test_tools_that_the_template_has_no_place_for_are_refused_in_words(browser: Any, worker: Any) -> None:
    with open_page(browser, worker.url, allowed=("400",)) as page:
        offer(page, "add")
        page.get_by_label("Message", exact=True).press_sequentially("Hello")
        page.keyboard.press("Enter")
        page.get_by_role("alert").filter(has_text="chat template does not render tools").wait_for()
        wait_for_end(page)


def test_an_error_is_shown_in_the_servers_words(browser: Any, worker: Any, engine: FakeEngine) -> None:
    with open_page(browser, worker.url, allowed=("400",)) as page:
        page.get_by_label("Temperature").fill("-1")
        page.get_by_label("Message", exact=True).press_sequentially("Hello")
        page.keyboard.press("Enter")
        assert "temperature" in page.get_by_role("alert").filter(has_text="temperature").inner_text()
        wait_for_end(page)


def test_a_server_with_keys_is_given_one(
    browser: Any, start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    worker = start_worker(worker=2, api_key=["right"])
    with open_page(browser, worker.url, allowed=("401",)) as page:
        for key in ("wrong", "right"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Use this key").click()
        page.get_by_text("tiny").wait_for()
        page.get_by_label("Message", exact=True).press_sequentially("Hello")
        page.keyboard.press("Enter")
        page.get_by_text("of one two").wait_for()
        wait_for_end(page)
        page.get_by_role("button", name="curl").click()
        command = page.locator("#curl-text").inner_text()
        assert "$LIGHTLLM_API_KEY" in command and "right" not in command
        assert page.evaluate("JSON.stringify(localStorage)").count("right") == 0
        assert page.evaluate("Object.values(sessionStorage)") == ["right"]


def test_a_phone_has_no_line_wider_than_itself(browser: Any, worker: Any, engine: FakeEngine) -> None:
    engine.script.answer = "x" * 300 + "\n\n" + MARKDOWN
    with open_page(browser, worker.url, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        page.get_by_label("Message", exact=True).fill("Hello")
        page.get_by_role("button", name="Send", exact=True).tap()
        page.get_by_text("safe", exact=True).wait_for()
        wait_for_end(page)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        page.get_by_role("button", name="Settings", exact=True).tap()
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_role("button", name="Close the settings").tap()
        assert page.get_by_label("Temperature").is_hidden()


def test_colours_follow_the_system_until_they_are_chosen(
    browser: Any, worker: Any, engine: FakeEngine
) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    with open_page(browser, worker.url, color_scheme="dark") as page:
        dark = page.evaluate(paper)
        page.emulate_media(color_scheme="light")
        light = page.evaluate(paper)
        assert dark != light
        for name, colour in (("system", light), ("light", light)):
            assert page.evaluate(paper) == colour
            page.get_by_role("button", name=f"Colours: {name}").click()
        assert page.evaluate(paper) == dark
        page.reload()
        assert page.evaluate(paper) == dark


def test_everything_is_reached_by_the_keyboard_and_has_a_name(
    page: Any, ask: Ask, engine: FakeEngine
) -> None:
    ask("Hello")
    wait_for_end(page)
    page.get_by_label("Message", exact=True).focus()
    controls = page.locator("button:visible, a:visible, input:visible, textarea:visible, summary:visible")
    reached = set()
    for _ in range(controls.count() + 12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML"))
    for i in range(controls.count()):
        control = controls.nth(i)
        markup = control.evaluate("each => each.outerHTML")
        assert markup in reached, markup
        named = control.evaluate("each => each.ariaLabel || each.innerText.trim() || each.labels?.length")
        assert named, markup


def test_images_are_attached_where_the_model_sees(browser: Any, worker: Any, engine: FakeEngine) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(picture, "PNG")
    with open_page(browser, worker.url) as page:
        assert page.get_by_role("button", name="Attach images").is_hidden()
        card = {"data": [{"id": "seeing", "input_modalities": ["text", "image"]}]}
        page.route("**/v1/models", lambda route: route.fulfill(json=card))
        page.reload()
        page.get_by_role("button", name="Attach images").wait_for()
        files = [
            {"name": f"{name}.png", "mimeType": "image/png", "buffer": picture.getvalue()}
            for name in ("dot", "spot")
        ]
        page.locator("#files").set_input_files(files)
        page.get_by_role("img", name="spot.png").wait_for()
        page.get_by_role("button", name="Remove dot.png").click()
        page.get_by_label("Message", exact=True).fill("What?")
        sent: list[dict[str, Any]] = []
        answered = {"choices": [{"index": 0, "delta": {"content": "A spot."}, "finish_reason": "stop"}]}

        def answer_for_a_model_that_sees(route: Any) -> None:
            sent.append(route.request.post_data_json)
            body = f"data: {json.dumps(answered)}\n\ndata: [DONE]\n\n"
            route.fulfill(body=body, content_type="text/event-stream")

        page.route("**/v1/chat/completions", answer_for_a_model_that_sees)
        page.keyboard.press("Enter")
        page.get_by_text("A spot.").wait_for()
        image, text = sent[0]["messages"][0]["content"]
        assert image["image_url"]["url"].startswith("data:image/png;base64,") and text == {
            "type": "text",
            "text": "What?",
        }
        page.reload()
        assert page.get_by_role("img", name="spot.png").is_visible()
