"""MockBackend: answers rounds with scripted tokens at a scripted speed. Loads no torch; see docs/mock_backend.md.

Without replies a token depends on (seed, choice, output position) alone, so a request gets the same answer alone and among others,
after a pause, and from any number of rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future

import msgspec
import numpy as np

from lightllm.backend.mock_check import RoundChecker
from lightllm.backend.mock_replies import RowPrompts, reply_for
from lightllm.backend.mock_script import MockRows, MockScript
from lightllm.backend.mock_spec import MockSpec
from lightllm.backend.pending import Computed, PendingResult
from lightllm.config import ServerConfig
from lightllm.constraints.grammars import Constraint
from lightllm.model_folder.config import eos_token_ids
from lightllm.model_folder.config import vocab_size as vocab_size_of
from lightllm.protocol.control import ModelReady
from lightllm.protocol.rounds import Round, RoundResult, RowPromptLogprobs

DEFAULT_SLOTS = 1_000_000


class MockBackend:
    """The interface of `ModeBackend`: `init_model`, `attach`, `submit`, `resync`."""

    def __init__(self, config: ServerConfig, progress: Callable[[str], None]) -> None:
        self._config = config
        self._progress = progress
        self._spec = MockSpec.parse(config.mock_backend or "")
        self._executed = 0

    def init_model(self, show_bar: bool = False) -> ModelReady:
        started = time.monotonic()
        self._progress("preparing the mock backend")
        time.sleep(self._spec.init_ms / 1e3)
        assert self._config.model_dir is not None
        vocab_size = self._spec.vocab_size or vocab_size_of(self._config.model_dir)
        eos = eos_token_ids(self._config.model_dir, self._config.eos_id)
        slots = self._spec.slots or self._config.max_total_token_num or DEFAULT_SLOTS
        self._slots = slots
        texts = [reply.text for reply in self._spec.replies] or [text for text in (self._spec.text,) if text]
        if texts:
            from lightllm.tokenizer import load_tokenizer

            self._tokenizer = load_tokenizer(
                self._config.model_dir, trust_remote_code=self._config.trust_remote_code
            )
        ids = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        self._script = MockScript(self._spec, vocab_size, eos, ids)
        self._forget_rows()
        self._checker = RoundChecker(slots, vocab_size) if self._spec.check else None
        return ModelReady(
            max_total_token_num=slots,
            vocab_size=vocab_size,
            dtype="none",
            device="mock",
            seconds={"mock": time.monotonic() - started},
            decode_tokens=self._spec.round_tokens[1],
        )

    def prepare_constraint(self, constraint: Constraint, grammar: str) -> None:
        """Its answers obey none."""

    def settle(self, seq: int) -> None:
        pass

    def attach(self, seq: int) -> None:
        self._forget_rows()
        if self._checker is not None:
            self._checker.attach(seq)

    def submit(self, round: Round) -> PendingResult:
        """Sleeps as long as the round takes."""
        return Computed(self.execute(round))

    def execute(self, round: Round) -> RoundResult:
        started = time.monotonic()
        self._executed += 1
        if self._spec.die_after and self._executed >= self._spec.die_after:
            os._exit(17)
        if self._spec.fail_every and self._executed % self._spec.fail_every == 0:
            reason = f"scripted failure of round {self._executed}"
            return RoundResult(round.seq, failed=reason, out_of_memory=self._spec.fail_oom)
        if self._checker is not None:
            error = self._checker.check(round)
            if error:
                return RoundResult(round.seq, failed=f"impossible round {round.seq}: {error}")
        for join in round.joins:
            self._rows.join(join, self._script)
        if self._prompts is not None:
            self._choose_replies(round, self._prompts)
        result = self._answer(round)
        tokens = int(round.q_len.sum())
        end = started + self._spec.step_ms / 1e3 + tokens * self._spec.token_us / 1e6
        time.sleep(max(0.0, end - time.monotonic()))
        return msgspec.structs.replace(result, seconds=time.monotonic() - started)

    def start_profile(self, rounds: int) -> None:
        raise RuntimeError("the mock backend computes nothing that could be profiled")

    def stop_profile(self) -> Future[str]:
        raise RuntimeError("the mock backend computes nothing that could be profiled")

    def round_done(self) -> None:
        pass

    def resync(self, seq: int) -> None:
        """The next round will be number `seq`."""
        if self._checker is not None:
            self._checker.resync(seq)

    def fail_round(self, error: Exception, failed: RoundResult) -> RoundResult:
        return failed

    def _answer(self, round: Round) -> RoundResult:
        sampled = np.flatnonzero(round.samples)
        decodes = sampled < round.num_decode
        asked = np.where(decodes, round.q_len[sampled], 1)
        before = round.kv_len[sampled] - asked
        first = before + 1 - self._rows.prompt_len[round.rows[sampled]]
        counts = self._script.counts(self._rows, round.rows[sampled], first, asked)
        if self._checker is not None:
            self._checker.keep(round.rows[sampled[decodes]], (before + counts)[decodes])
        rows = np.repeat(round.rows[sampled], counts)
        positions = np.arange(len(rows)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        tokens, logprobs = self._script.sample(self._rows, rows, positions)
        top = {
            int(i): self._script.alternatives(
                int(tokens[i]), float(logprobs[i]), int(self._rows.top_k[rows[i]])
            )
            for i in np.flatnonzero(self._rows.top_k[rows])
        }
        result = RoundResult(
            seq=round.seq, token_ids=tokens, logprobs=logprobs, top=top, counts=counts.astype(np.int32)
        )
        wanted = np.flatnonzero(self._rows.prompt_top_k[round.rows] >= 0)
        for entry in wanted:
            if entry >= round.num_decode:
                result.prompt_logprobs.append(self._prompt_logprobs(round, int(entry)))
        return result

    def _prompt_logprobs(self, round: Round, entry: int) -> RowPromptLogprobs:
        """A chunk over positions [a, b) predicts the tokens (a, b], as far as they belong to the prompt."""
        row, end = round.rows[entry], int(round.kv_len[entry])
        start = end - int(round.q_len[entry]) + 1
        stop = min(end + 1, int(self._rows.prompt_len[row]))
        logprobs = -1.0 - (np.arange(start, max(start, stop)) % 7).astype(np.float32)
        k = int(self._rows.prompt_top_k[row])
        top = [self._script.alternatives(p, float(v), k) for p, v in enumerate(logprobs, start)] if k else []
        return RowPromptLogprobs(entry=entry, start=start, logprobs=logprobs, top=top)

    def _forget_rows(self) -> None:
        self._rows = MockRows(self._config.running_max_req_size + 1)
        self._prompts = RowPrompts(self._slots, self._tokenizer) if self._spec.replies else None

    def _choose_replies(self, round: Round, prompts: RowPrompts) -> None:
        """For the rows whose prompt ends with this round."""
        decode = slice(round.num_decode)
        rows = np.repeat(round.rows[decode], round.q_len[decode])
        ends = np.cumsum(round.q_len[decode])
        contexts = np.arange(len(rows)) + np.repeat(round.kv_len[decode] - ends, round.q_len[decode])
        decoded, _ = self._script.sample(self._rows, rows, contexts - self._rows.prompt_len[rows])
        prompts.take(round, decoded)
        for entry in np.flatnonzero(round.samples[round.num_decode :]) + round.num_decode:
            row = int(round.rows[entry])
            prompt = prompts.text(row, int(self._rows.prompt_len[row]))
            self._rows.answer_with(row, reply_for(self._spec.replies, prompt), self._script)
