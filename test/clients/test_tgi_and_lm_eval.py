"""Clients from the package registry, as they are, against a server with the demo model: `make test-clients`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.server import LightLLMServer
from support.unmodified_clients import needs_clients, run

pytestmark = needs_clients

TEXT_GENERATION = """\
    from text_generation import Client
    from text_generation.errors import ValidationError

    client = Client(URL)
    answer = client.generate("What is the capital of France?", max_new_tokens=20)
    details = answer.details
    assert "Paris" in answer.generated_text, answer
    assert details.finish_reason == "eos_token" and details.generated_tokens == len(details.tokens)
    stream = list(client.generate_stream("What is the capital of France?", max_new_tokens=20))
    assert stream[-1].generated_text == answer.generated_text
    assert "".join(part.token.text for part in stream) == answer.generated_text
    short = client.generate("What is the capital of France?", max_new_tokens=1, return_full_text=True)
    assert short.details.finish_reason == "length" and short.generated_text.startswith("What is")
    digits = client.generate("2+3=", grammar={"type": "regex", "value": "[0-9]{2}"}, stop_sequences=["x"])
    assert digits.generated_text.isdigit()
    try:
        client.generate("x", decoder_input_details=True)
    except ValidationError as error:
        assert "decoder_input_details" in str(error)
    else:
        raise AssertionError("not refused")
    print("done")
"""

LM_EVAL = """\
    from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support

    assert check_remote_tokenizer_support(URL + "/v1/completions")
    tokenizer = RemoteTokenizer(URL + "/v1/completions")
    text = "What is the capital of France?"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer(text)["input_ids"] == ids
    assert tokenizer.batch_decode([ids, ids[:1]])[0] == text
    assert isinstance(tokenizer.eos_token_id, int) and tokenizer.eot_token == tokenizer.eos_token_id
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}])
    assert text in chat and not chat.endswith(text)
    print("done")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LightLLMServer]:
    with LightLLMServer(["--max_total_token_num", "20000", "--data_type", "fp32"]) as server:
        yield server


@pytest.mark.parametrize("script", [TEXT_GENERATION, LM_EVAL], ids=["text-generation", "lm-eval"])
def test_an_unmodified_client_works(server: LightLLMServer, script: str) -> None:
    assert run(script, server.url).endswith("done\n")
