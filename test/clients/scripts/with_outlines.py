"""outlines, by its models of OpenAI's, vLLM's, SGLang's, TGI's and Ollama's servers: types, choices, expressions, grammars, streams."""

import json
from typing import Literal

import ollama
import openai
import outlines
from huggingface_hub import InferenceClient
from meeting import CAPITAL, DEMO, KEY
from outlines.types import CFG, Regex
from pydantic import BaseModel, ConfigDict

client = openai.OpenAI(base_url=f"{DEMO}/v1", api_key=KEY, max_retries=0)
LARK = 'start: "<" /[a-c]{3}/ ">"'
EBNF = 'root ::= "<" [a-c] [a-c] [a-c] ">"'


class Capital(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    inhabitants: int


def is_of_the_language(text: str) -> bool:
    return len(text) == 5 and text[0] == "<" and text[-1] == ">" and set(text[1:4]) <= set("abc")


by_openai = outlines.from_openai(client, "any")
whole = by_openai(CAPITAL, max_tokens=40)
assert "Paris" in whole
assert "".join(by_openai.stream(CAPITAL, max_tokens=40)) == whole
assert Capital.model_validate_json(by_openai(CAPITAL, Capital, max_tokens=200))

by_vllm = outlines.from_vllm(client, "any")
by_sglang = outlines.from_sglang(client, "any")
for model, grammar in ((by_vllm, LARK), (by_sglang, EBNF)):
    assert Capital.model_validate_json(model(CAPITAL, Capital, max_tokens=200))
    assert model("Yes or no?", Literal["yes", "no"]) in ("yes", "no")
    number = model("2+3=", Regex("[0-9]{2}"))
    assert number.isdigit() and len(number) == 2, number
    assert is_of_the_language(model("Say something.", CFG(grammar)))
    assert "".join(model.stream("2+3=", Regex("[0-9]{2}"))) == number

by_tgi = outlines.from_tgi(InferenceClient(model=DEMO, token=KEY))
assert Capital.model_validate_json(by_tgi(CAPITAL, Capital, max_new_tokens=200))
assert by_tgi("2+3=", Regex("[0-9]{2}")).isdigit()
assert "Paris" in "".join(by_tgi.stream(CAPITAL, max_new_tokens=20))

at_ollama = ollama.Client(host=DEMO, headers={"Authorization": f"Bearer {KEY}"})
by_ollama = outlines.from_ollama(at_ollama, "any")
assert json.loads(by_ollama(CAPITAL, Capital, options={"num_predict": 200})).keys() == {"city", "inhabitants"}
assert "Paris" in "".join(by_ollama.stream(CAPITAL))
print("done")
