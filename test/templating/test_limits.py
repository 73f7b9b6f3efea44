"""A template is a program of the model folder: whatever it does costs limited time and memory, in a process of its own."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.chat_templates import CHATML, QWEN, USER

from lightllm.errors import InvalidOption, InvalidParameter, ServerStopping
from lightllm.templating.limits import Limits
from lightllm.templating.process import MAX_PROCESSES, TemplateProcesses
from lightllm.tokenizer.chat_template import ChatTemplates, read_chat_templates

LIMITS = Limits(cpu_seconds=0.5, memory_mib=64)
FOR_EVER = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
WHEN_ASKED = "{{ messages[0].content }}{% if messages[0].content == 'now' %}" + FOR_EVER + "{% endif %}"


def content(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


SERVER = """
import sys, time
from lightllm.tokenizer.chat_template import ChatTemplates
templates = ChatTemplates({"default": sys.argv[1]})
templates.check()
print(templates.processes.idle_pids[0], flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def start() -> Iterator[object]:
    started: list[ChatTemplates] = []

    def start(source: str, limits: Limits = LIMITS) -> ChatTemplates:
        started.append(ChatTemplates({"default": source}, limits))
        return started[-1]

    yield start
    for templates in started:
        templates.close()


def refusal(templates: ChatTemplates, text: str = "hi") -> str:
    with pytest.raises(InvalidParameter) as refused:
        templates.render(content(text), None, True, {})
    message = refused.value.message
    assert "chat template" in message and "\n" not in message and len(message) < 400
    return message


def pids(templates: ChatTemplates) -> list[int]:
    return templates.processes.idle_pids


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[0].__class__.__mro__ }}{{ messages.append(1) }}",
        "{{ namespace(__init__=1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.nothing.at_all }}",
    ],
)
def test_what_the_sandbox_refuses_is_an_error_of_the_request(start, source):
    refusal(start(source, Limits(cpu_seconds=5)))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (FOR_EVER, "took more than 0.5 s of processor time when it was tried"),
        ("{{ (range(99999) | list * 99) | sort | length }}" * 40, "took more than"),
        ("{{ '%1000000000d' % 1 }}", "took more than 64 MiB of memory"),
        ("{{ [[[[[[1]]]]]] | tojson(indent=500000000) }}", "took more than 64 MiB of memory"),
        ("{{ 'x' | center(10 ** 10) }}", "took more than 64 MiB of memory"),
        ("x" * 1_100_000, "has 1100000 characters, at most 1048576"),
    ],
    ids=["loop", "sort", "format", "indent", "center", "length"],
)
def test_a_template_without_bounds_is_found_when_it_is_tried(start, source, reason):
    templates = start(source)
    assert reason in templates.check()["default"]
    assert reason in refusal(templates)


def test_one_that_is_given_as_an_option_ends_the_launch(tmp_path):
    with pytest.raises(InvalidOption, match=r"--chat_template: the chat template took more than 0\.5 s"):
        read_chat_templates(tmp_path, FOR_EVER, LIMITS)


def test_a_conversation_with_which_it_loops_is_refused_and_the_next_one_served(start):
    templates = start(WHEN_ASKED)
    assert templates.check() == {}
    (before,) = pids(templates)
    assert "took more than 0.5 s of processor time for these messages" in refusal(templates, "now")
    assert templates.render(content("later"), None, True, {}) == "later"
    assert pids(templates) != [before]


def test_a_conversation_with_which_it_takes_too_much_memory_is_refused_and_the_next_one_served(start):
    templates = start(
        "{{ messages[0].content }}{% if messages[0].content == 'now' %}{{ '%999999999d' % 1 }}{% endif %}"
    )
    assert "took more than 64 MiB of memory for these messages" in refusal(templates, "now")
    assert templates.render(content("later"), None, True, {}) == "later"


def test_others_are_rendered_while_it_loops(start):
    templates = start(WHEN_ASKED, Limits(cpu_seconds=1.0))
    templates.check()
    with ThreadPoolExecutor(1) as pool:
        looping = pool.submit(refusal, templates, "now")
        wait_until(lambda: templates.processes.busy == 1)
        assert [templates.render(content("others"), None, True, {}) for _ in range(20)] == ["others"] * 20
        assert "took more than 1 s" in looping.result()


def test_a_process_that_somebody_killed_is_replaced(start):
    templates = start(CHATML)
    first = templates.render([USER], None, True, {})
    (pid,) = pids(templates)
    os.kill(pid, signal.SIGKILL)
    assert templates.render([USER], None, True, {}) == first
    assert pids(templates) != [pid]


def test_all_that_are_idle_may_be_killed_at_once(start):
    """As the kernel does where memory is short."""
    templates = start(CHATML)
    processes = templates.processes
    with processes.one(), processes.one():
        pass
    killed = pids(templates)
    assert len(killed) == MAX_PROCESSES
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert USER["content"] in templates.render([USER], None, True, {})


def test_a_process_that_stands_still_is_replaced(start):
    templates = start(CHATML, Limits(wall_seconds=3))
    templates.check()
    (pid,) = pids(templates)
    os.kill(pid, signal.SIGSTOP)
    assert "took more than 3 s" in refusal(templates)
    assert not Path(f"/proc/{pid}").exists()


def test_closing_ends_what_is_being_rendered(start):
    templates = start(WHEN_ASKED, Limits(cpu_seconds=60))
    templates.check()
    with ThreadPoolExecutor(1) as pool:
        looping = pool.submit(templates.render, content("now"), None, True, {})
        wait_until(lambda: templates.processes.busy == 1)
        templates.close()
        with pytest.raises(ServerStopping):
            looping.result(60)


def test_a_limit_of_the_server_itself_is_none_of_its_children_errors():
    """`ulimit -v`: a hard limit cannot be raised again without a capability."""
    limited = (
        "import ctypes, resource; from lightllm.tokenizer.chat_template import ChatTemplates;"
        "ctypes.CDLL(None).prctl(24, 24, 0, 0, 0);"  # PR_CAPBSET_DROP, CAP_SYS_RESOURCE: of its children
        "resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30));"
        f"print(ascii(ChatTemplates({{'default': {CHATML!r}}}).render([{USER!r}], None, True, {{}})))"
    )
    rendered = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True)
    assert ascii(USER["content"])[1:-1] in rendered.stdout


def test_processes_end_with_what_started_them():
    templates = ChatTemplates({"default": CHATML})
    templates.check()
    (pid,) = pids(templates)
    del templates
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_processes_end_when_their_server_is_killed():
    server = subprocess.Popen([sys.executable, "-c", SERVER, CHATML], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    assert alive(pid)
    server.kill()
    server.wait()
    server.stdout.close()
    wait_until(lambda: not alive(pid))


def test_a_process_is_small_and_stays_so(start):
    templates = start(QWEN, Limits())
    for size in (10, 9_000_000, 10):
        templates.render(content("x" * size), None, True, {})
    (pid,) = pids(templates)
    resident = Path(f"/proc/{pid}/statm").read_text().split()[1]
    assert int(resident) * os.sysconf("SC_PAGE_SIZE") < 48 << 20


def test_no_more_than_two_conversations_are_rendered_at_a_time():
    processes = TemplateProcesses()
    released = threading.Event()

    def hold() -> int:
        with processes.one() as process:
            assert released.wait(60)
            return process.pid

    with ThreadPoolExecutor(5) as pool:
        holders = [pool.submit(hold) for _ in range(5)]
        wait_until(lambda: processes.busy == MAX_PROCESSES)
        released.set()
        assert len({holder.result(60) for holder in holders}) == MAX_PROCESSES
    processes.close()
