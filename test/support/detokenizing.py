"""A Detokenizer, the messages of one request, and who reads what comes out."""

from lightllm.detokenizer.detokenizer import Detokenizer
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice, Finish, RoundTokens
from lightllm.sampling_params import SamplingParams

EOS = 1
SPECIAL_USER = 2
"""<|user|>"""


def make(tokenizer, workers=1):
    return Detokenizer(tokenizer, [EOS], workers)


def request(ids, prompt=(5,), output=(), **params):
    params.setdefault("max_new_tokens", 1000)
    return AddRequest(
        prompt_ids=int32(prompt),
        params=SamplingParams(**params),
        choices=[Choice(i, n, int32(output)) for n, i in enumerate(ids)],
    )


def tokens(request_id, token_ids, finished=()):
    return RoundTokens(
        [request_id] * len(token_ids), list(token_ids), [-0.5] * len(token_ids), finished=list(finished)
    )


class Client:
    """Collects what an Http Server and the Router would get."""

    def __init__(self, detokenizer):
        self.detokenizer = detokenizer
        self.text, self.finished, self.aborts, self.token_ids = {}, {}, [], {}

    def take(self, message):
        output = self.detokenizer.handle(message)
        for deltas in output.deltas.values():
            for request_id, token_id, text in zip(deltas.request_ids, deltas.token_ids, deltas.texts):
                assert request_id not in self.finished, "a token after the finish"
                self.text[request_id] = self.text.get(request_id, "") + text
                self.token_ids.setdefault(request_id, []).append(token_id)
            for i, finish in enumerate(deltas.finished):
                assert finish.request_id not in self.finished, "two finishes"
                self.text[finish.request_id] = self.text.get(finish.request_id, "") + deltas.tails.get(i, "")
                self.finished[finish.request_id] = finish
        self.aborts += output.aborts
        return output


def run(tokenizer, token_ids, reason="length", **params):
    """One request, one token a round, then the Router's finish."""
    client = Client(make(tokenizer))
    client.take(request([1], prompt=params.pop("prompt", (5,)), **params))
    for token_id in token_ids:
        client.take(tokens(1, [token_id]))
    client.take(tokens(1, [], [Finish(1, reason, 1, len(token_ids))]))
    assert len(client.detokenizer) == 0
    return client
