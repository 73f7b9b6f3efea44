"""The text that the demo model is trained on."""

import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo_model.corpus import BOS, EOS, TURN_END, Corpus, text_of  # noqa: E402
from demo_model.report import BEGIN, END, write_report  # noqa: E402
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


def test_documents_fit_into_the_wanted_length() -> None:
    documents = islice(Corpus(3, len, 400), 200)
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
