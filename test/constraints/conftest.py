from __future__ import annotations

import pytest
from support.constrained import KINDS, Vocabulary

from lightllm.tokenizer import load_tokenizer


@pytest.fixture(scope="module", params=KINDS)
def vocabulary(request, tmp_path_factory) -> Vocabulary:
    path = KINDS[request.param](tmp_path_factory.mktemp("tokenizer") / "model")
    return Vocabulary(load_tokenizer(str(path), with_chat_template=False))
