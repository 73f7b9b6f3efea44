"""The inputs of a round against a loop over its tokens."""

import pytest
import torch

from lightllm.ops.round_inputs import build_round_inputs


class Case:
    """q_lens, kv_lens of each entry; rows in a shuffled order; the last `padding` decode entries are the hold row's."""

    def __init__(self, q_lens, kv_lens, num_decode, padding=0, max_rows=40, max_len=300, device="cpu"):
        generator = torch.Generator().manual_seed(len(q_lens))
        entries, tokens = len(q_lens), sum(q_lens)
        self.rows = torch.randperm(max_rows, generator=generator)[:entries]
        if padding:
            self.rows[num_decode - padding : num_decode] = max_rows
        self.q_lens, self.kv_lens, self.num_decode = q_lens, kv_lens, num_decode
        self.slots = torch.randperm(10_000, generator=generator)[:tokens]
        self.chunk_ids = torch.randint(1000, (tokens,), generator=generator)
        self.last_token = torch.randint(1000, (max_rows + 1,), generator=generator)
        self.rope_delta = -torch.randint(9, (max_rows + 1,), generator=generator)
        self.table = torch.full((max_rows + 1, max_len), -7, dtype=torch.int32)
        self.device = device

    def run(self, build):
        """(input ids, positions, rope positions, table) of an implementation."""
        place = {"device": self.device}
        starts = torch.tensor([0, *self.q_lens]).cumsum(0).to(torch.int32)
        ids, table = self.chunk_ids.clone().to(**place), self.table.clone().to(**place)
        positions, rope_positions = torch.full((2, len(ids)), -7, **place).unbind(0)
        build(
            self.rows.to(**place), starts.to(**place), torch.tensor(self.kv_lens, dtype=torch.int32, **place),
            self.slots.to(**place), self.num_decode, max(self.q_lens, default=1), self.last_token.to(**place),
            self.rope_delta.to(**place), ids, positions, rope_positions, table,
        )  # fmt: skip
        return ids.cpu(), positions.cpu(), rope_positions.cpu(), table.cpu()

    def expected(self):
        ids, positions, turned, token = self.chunk_ids.clone(), [], [], 0
        table = self.table.clone()
        for entry, (row, q_len, kv_len) in enumerate(zip(self.rows.tolist(), self.q_lens, self.kv_lens)):
            for position in range(kv_len - q_len, kv_len):
                positions.append(position)
                turned.append(position + int(self.rope_delta[row]))
                table[row, position] = self.slots[token]
                if entry < self.num_decode:
                    ids[token] = self.last_token[row]
                token += 1
        return ids, torch.tensor(positions), torch.tensor(turned), table


CASES = {
    "one decode entry": ([1], [5], 1),
    "33 decode entries": ([1] * 33, list(range(1, 34)), 33),
    "one chunk without a prefix": ([129], [129], 0),
    "chunks behind prefixes": ([3, 1, 40], [3, 200, 141], 0),
    "decode beside chunks": ([1, 1, 7, 1], [9, 1, 7, 30], 2),
}


@pytest.mark.parametrize("name", CASES)
def test_torch_form_equals_the_loop(name):
    case = Case(*CASES[name])
    for result, expected in zip(case.run(build_round_inputs), case.expected(), strict=True):
        assert torch.equal(result, expected)
