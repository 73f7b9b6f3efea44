"""lm-eval's models for completions and chats, with the tokenizer of the server: log-likelihoods, rolling ones, generation."""

import os

from meeting import CAPITAL, DEMO, KEY

os.environ["OPENAI_API_KEY"] = KEY
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI  # noqa: E402
from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support  # noqa: E402

COMPLETIONS = f"{DEMO}/v1/completions"


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def tokenizer() -> None:
    assert check_remote_tokenizer_support(COMPLETIONS, auth_token=KEY)
    remote = RemoteTokenizer(COMPLETIONS, auth_token=KEY)
    ids = remote.encode(CAPITAL)
    assert remote.decode(ids) == CAPITAL and remote(CAPITAL)["input_ids"] == ids
    assert remote.batch_decode([ids, ids[:1]])[0] == CAPITAL
    assert isinstance(remote.eos_token_id, int) and remote.eot_token == remote.eos_token_id
    chat = remote.apply_chat_template([{"role": "user", "content": CAPITAL}])
    assert CAPITAL in chat and not chat.endswith(CAPITAL)


def completions() -> None:
    model = LocalCompletionsAPI(
        base_url=COMPLETIONS,
        model="any",
        tokenizer_backend="remote",
        auth_token=KEY,
        batch_size=2,
        max_length=512,
    )
    right, wrong, sure = model.loglikelihood(
        asked("loglikelihood", ("2+3=", "5"), ("2+3=", "7"), ("4+4=", "8"))
    )
    assert sure[1] and not wrong[1] and 0 >= right[0] > wrong[0] + 3, (right, wrong, sure)
    (rolling,) = model.loglikelihood_rolling(asked("loglikelihood_rolling", (CAPITAL,)))
    assert rolling < 0
    greedy = {"until": ["\n"], "max_gen_toks": 20, "do_sample": False, "temperature": 0}
    answers = model.generate_until(asked("generate_until", (CAPITAL, greedy), (CAPITAL, greedy)))
    assert answers[0] == answers[1] and "Paris" in answers[0], answers


def chats() -> None:
    model = LocalChatCompletion(base_url=f"{DEMO}/v1/chat/completions", model="any", auth_token=KEY)
    turns = model.apply_chat_template([{"role": "user", "content": CAPITAL}])
    (answer,) = model.generate_until(
        asked("generate_until", (turns, {"until": ["\n\n"], "max_gen_toks": 40}))
    )
    assert "Paris" in answer


tokenizer()
completions()
chats()
print("done")
