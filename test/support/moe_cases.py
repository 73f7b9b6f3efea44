"""Mixtures of experts written as plainly as possible, and random inputs to compare implementations with them."""

import math

import torch

from lightllm.ops.moe_routing_spec import MoeRoutingSpec

FORMS = {
    "Mixtral": MoeRoutingSpec(8, 2, normalise=True),
    "Qwen3": MoeRoutingSpec(6, 3),
    "gpt-oss": MoeRoutingSpec(32, 4, scoring="top_k_softmax"),
    "DeepSeek-V2": MoeRoutingSpec(12, 3, groups=4, top_groups=2, scale=16.0),
    "GLM-4.5": MoeRoutingSpec(8, 3, scoring="sigmoid", normalise=True),
    "DeepSeek-V3": MoeRoutingSpec(
        24, 4, scoring="sigmoid", normalise=True, groups=6, top_groups=2, scale=2.5
    ),
}


def routing_case(name: str, tokens: int) -> tuple[MoeRoutingSpec, torch.Tensor, torch.Tensor | None]:
    form = FORMS[name]
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(tokens, form.num_experts, generator=generator) * 2
    bias = torch.randn(form.num_experts, generator=generator) if form.scoring == "sigmoid" else None
    return form, logits, bias


def expected_routing(
    logits: torch.Tensor, form: MoeRoutingSpec, bias: torch.Tensor | None
) -> tuple[torch.Tensor, list[list[int]]]:
    """Weights float64 [T, top_k] and experts, the best first: a loop over tokens."""
    all_weights, all_experts = [], []
    offsets = [0.0] * form.num_experts if bias is None else bias.tolist()
    for row in logits.double().tolist():
        if form.scoring == "softmax":
            scores = [math.exp(x) / sum(math.exp(y) for y in row) for x in row]
        elif form.scoring == "sigmoid":
            scores = [1 / (1 + math.exp(-x)) for x in row]
        else:
            scores = row
        worth = [score + offset for score, offset in zip(scores, offsets, strict=True)]
        size = form.num_experts // form.groups
        runs = [worth[start : start + size] for start in range(0, form.num_experts, size)]
        best = 1 if bias is None else 2
        rank = sorted(range(form.groups), key=lambda g: -sum(sorted(runs[g])[-best:]))[: form.top_groups]
        allowed = [e for e in range(form.num_experts) if e // size in rank]
        chosen = sorted(allowed, key=lambda e: -worth[e])[: form.top_k]
        weights = [scores[e] for e in chosen]
        if form.scoring == "top_k_softmax":
            weights = [math.exp(x) / sum(math.exp(y) for y in weights) for x in weights]
        elif form.normalise:
            weights = [x / (sum(weights) + 1e-20) for x in weights]
        all_weights.append([x * form.scale for x in weights])
        all_experts.append(chosen)
    return torch.tensor(all_weights, dtype=torch.float64), all_experts


LOW_LOGITS = {
    "all scores 0": -120.0,
    "below the constant of the sum": -60.0,
    "far below": -80.0,
    "about it": -46.0,
}
"""Of the sigmoid gate: what the published one makes of them is no division by 0."""

BROKEN_LOGITS = {"NaN": float("nan"), "-inf": -float("inf"), "+inf": float("inf")}


def broken_routing_case(name: str, value: float) -> tuple[MoeRoutingSpec, torch.Tensor, torch.Tensor | None]:
    """Logits with `value`: in one place, in a whole group, everywhere; the last row has none."""
    form, logits, bias = routing_case(name, tokens=5)
    logits[0, 1] = logits[2] = value
    logits[1, : form.num_experts // form.groups] = value
    logits[3, -1] = value
    return form, logits, bias


def check_broken_routing(form: MoeRoutingSpec, weights: torch.Tensor, experts: torch.Tensor) -> None:
    """Every token has `top_k` different experts that exist; who has numbers has numbers."""
    assert ((experts >= 0) & (experts < form.num_experts)).all(), experts
    assert [len(set(row)) for row in experts.tolist()] == [form.top_k] * len(experts), experts
    assert weights[4].isfinite().all()


class ExpertsCase:
    """Random experts, of which each token uses `top_k` different ones; the first is used by all, the last by none."""

    def __init__(
        self,
        tokens: int,
        count: int = 9,
        top_k: int = 3,
        hidden: int = 40,
        width: int = 24,
        bias: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        self.count, self.bias = count, bias
        self.x = random(tokens, hidden)
        others = torch.stack(
            [torch.randperm(count - 2, generator=generator)[: top_k - 1] for _ in range(tokens)]
        )
        self.experts = torch.cat((torch.zeros(tokens, 1), others + 1), 1).int()
        self.weights = random(tokens, top_k).softmax(-1)
        self.gate_up = random(count, 2 * width, hidden) / hidden**0.5
        self.down = random(count, hidden, width) / width**0.5
        self.gate_up_bias, self.down_bias = random(count, 2 * width), random(count, hidden)

    def expert(
        self, number: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        gate_up_bias = self.gate_up_bias[number] if self.bias else None
        return (
            self.gate_up[number],
            self.down[number],
            gate_up_bias,
            self.down_bias[number] if self.bias else None,
        )

    def expected(self) -> torch.Tensor:
        """float64 [T, hidden], with silu as the gate's activation."""
        out = torch.zeros(self.x.shape, dtype=torch.float64)
        for token, (x, experts, weights) in enumerate(zip(self.x, self.experts.tolist(), self.weights)):
            for number, weight in zip(experts, weights.double()):
                gate_up, down, gate_up_bias, down_bias = self.expert(number)
                both = gate_up.double() @ x.double()
                if gate_up_bias is not None:
                    both += gate_up_bias.double()
                gate, up = both.chunk(2)
                y = down.double() @ (gate * gate.sigmoid() * up)
                out[token] += weight * (y if down_bias is None else y + down_bias.double())
        return out
