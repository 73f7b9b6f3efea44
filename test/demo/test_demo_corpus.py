"""The text that the demo model is trained on."""

import random
import re
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo_model import calling  # noqa: E402
from demo_model.corpus import Corpus  # noqa: E402
from demo_model.document import BOS, EOS, TURN_END, text_of  # noqa: E402
from demo_model.report import BEGIN, END, write_report  # noqa: E402
from demo_model.thinking import LARGEST, step_by_step, thinking_sum  # noqa: E402
from lightllm.demo import MODEL_DIR  # noqa: E402


def _texts(seed: int, count: int = 300) -> list[str]:
    return [text_of(document) for document in islice(Corpus(seed), count)]


def test_same_seed_same_text() -> None:
    assert _texts(5) == _texts(5)
    assert _texts(5) != _texts(6)


def test_every_document_begins_with_one_bos_and_ends_with_an_end_token() -> None:
    for text in _texts(1):
        assert text.startswith(BOS) and text.count(BOS) == 1
        assert text.endswith((EOS, TURN_END + "\n"))


def test_held_out_questions_are_never_trained() -> None:
    corpus = Corpus(2)
    held_out = {exchange.key for exchange in (corpus.exchange(held_out=True) for _ in range(300))}
    trained = {exchange.key for exchange in (corpus.exchange() for _ in range(3000))}
    assert len(held_out) > 50
    assert not held_out & trained


def test_names_and_numbers_of_the_evaluation_are_never_trained() -> None:
    rng = random.Random(4)
    kept_tools = {calling.draw_tool(rng, held_out=True) for _ in range(200)}
    kept_pairs = {calling.draw_numbers(rng, held_out=True) for _ in range(200)}
    kept_sums = {thinking_sum(rng, held_out=True).key for _ in range(200)}
    assert min(len(kept_tools), len(kept_pairs), len(kept_sums)) > 10
    assert kept_tools.isdisjoint(calling.draw_tool(rng) for _ in range(2000))
    assert kept_pairs.isdisjoint(calling.draw_numbers(rng) for _ in range(2000))
    assert kept_sums.isdisjoint(thinking_sum(rng).key for _ in range(2000))


def test_calls_in_the_text_say_what_was_asked_and_answers_what_came_back() -> None:
    calls = 0
    for text in _texts(8, 1500):
        for found in re.finditer(r'"arguments": \{"\w+": (\d+), "\w+": (\d+)\}\}\n</tool_call>', text):
            asked = text[: found.start()].rpartition("<|im_start|>user\n")[2]
            total = int(found[1]) + int(found[2])
            answered = text[found.end() :].partition("<|im_start|>assistant\n")
            assert re.findall(r"\d+", asked.partition("<|im_end|>")[0]) == [found[1], found[2]]
            assert str(total) in answered[0]
            assert answered[2].partition("<|im_end|>")[0].endswith(f"The sum is {total}.")
            calls += 1
    assert calls > 100


def test_every_step_that_is_thought_is_true() -> None:
    for a in range(LARGEST + 1):
        for b in range(LARGEST + 1):
            steps = re.findall(r"(\d+)\+(\d+)=(\d+)", step_by_step(a, b))
            assert all(int(one) + int(other) == int(total) for one, other, total in steps)
            assert int(steps[-1][2]) == a + b


def test_documents_fit_into_the_wanted_length() -> None:
    corpus = Corpus(3)
    corpus.limit(len, 400)
    documents = islice(corpus, 200)
    assert all(len(text_of(document)) <= 400 for document in documents)


def test_report_replaces_only_its_own_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    write_report(page, ["new"], {})
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n")
    assert "new" in text and "old" not in text


def test_model_folder_is_inside_the_package() -> None:
    assert Path(MODEL_DIR).parent.name == "lightllm"
