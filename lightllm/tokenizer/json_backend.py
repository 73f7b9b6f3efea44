"""`tokenizer.json`, read by the `tokenizers` library; refused where its replacements can make a text much longer."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from lightllm.errors import InvalidModel, InvalidParameter
from lightllm.tokenizer import cuts, pieces
from lightllm.tokenizer.backends import Backend
from lightllm.tokenizer.special_tokens import SpecialTokens
from lightllm.tokenizer.text_stream import REPLACEMENT, Step

MAX_GROWTH = 16.0
"""Times the characters of a text. A dozen replacements that double it are gigabytes; published files stay below 4; a text of 64 Ki characters takes 150 MB at 16."""

_LONG = 2 * cuts.PART_CHARACTERS
"""Characters from which a text is tokenized in parts."""
_UNICODE_CLASS = re.compile(r"\\[pP]\{[^}]*\}")


class JsonBackend(Backend):
    """A `tokenizers.Tokenizer` with the special tokens of the configuration files added to it.

    Its own post-processor decides about BOS and EOS; `add_bos_token` is not asked, as in transformers 5.
    """

    def __init__(self, path: Path, special: SpecialTokens) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for whatever it cannot read
            raise InvalidModel(f"{path} cannot be read: {error}.", "Download the model again.") from error
        _check_growth(self._tokenizer, path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add_tokens(special)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = max(
            [self._tokenizer.get_vocab_size(with_added_tokens=False), *(i + 1 for i in added)]
        )
        self.token_bytes = self._token_bytes()
        self._around = self._special_around() if cuts.has_cuts(self._tokenizer) else None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) < _LONG or self._around is None:
            return self._encode(text, add_special_tokens)
        before, behind = self._around if add_special_tokens else ([], [])
        inner = itertools.chain.from_iterable(self._encode_all([*cuts.parts(text)], False))
        return [*before, *inner, *behind]

    def encode_pair(self, first: str, second: str, add_special_tokens: bool) -> list[int]:
        return self._encode((first, second), add_special_tokens)

    def _encode(self, text: str | tuple[str, str], add_special_tokens: bool) -> list[int]:
        return self._encode_all([text], add_special_tokens)[0]

    def _encode_all(self, texts: list[Any], add_special_tokens: bool) -> list[list[int]]:
        """Of each text, or pair of texts; several at once on several cores, unless TOKENIZERS_PARALLELISM forbids it."""
        # The batch call without offsets is twice as fast as `encode` and, unlike it, releases the GIL.
        try:
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
            return [one.ids for one in encoded]
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # The library's panic: its regular expressions give up after some million steps.
            raise InvalidParameter("the model's tokenizer cannot read this text", param="prompt") from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        try:
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            # A decoder's panic, on tokens that it was not made for. They stand there as the vocabulary writes them.
            kept = [i for i in ids if not (skip_special_tokens and i in self.special_ids)]
            return "".join(self._tokenizer.id_to_token(i) or "" for i in kept)

    def stream_step(self, context: list[int], skip_special_tokens: bool) -> Step | None:
        # A `DecodeStream` that begins in half a character sends the text of its context again.
        if self.decode(context, skip_special_tokens).endswith(REPLACEMENT):
            return None
        return partial(DecodeStream(context, skip_special_tokens).step, self._tokenizer)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def _add_tokens(self, special: SpecialTokens) -> None:
        """Adds tokens that only the configuration files know, under the ids that they state, and marks the special."""
        present = self._tokenizer.get_added_tokens_decoder()
        for token_id, token in sorted(special.added.items()):
            known = present.get(token_id)
            if known is not None and known.content == token.content and known.special == token.special:
                continue
            existing = self._tokenizer.token_to_id(token.content)
            next_id = self._tokenizer.get_vocab_size(with_added_tokens=True)
            if existing != token_id and (existing is not None or next_id != token_id):
                continue  # the library gives ids in order; a token cannot get this one
            added = tokenizers.AddedToken(
                token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
                normalized=token.normalized, special=token.special,
            )  # fmt: skip
            (self._tokenizer.add_special_tokens if token.special else self._tokenizer.add_tokens)([added])
        # Named tokens are special even where the tokenizer file does not say so. One that has no id yet gets none:
        # it would lie outside the model's vocabulary.
        special_now = {
            token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special
        }
        for content in {*special.named.values(), *special.extra} - special_now:
            if self._tokenizer.token_to_id(content) is not None:
                self._tokenizer.add_special_tokens(
                    [tokenizers.AddedToken(content, normalized=False, special=True)]
                )

    def _special_around(self) -> tuple[list[int], list[int]] | None:
        """Ids that are put before a text and behind it; None if that is not all."""
        plain, whole = (self._encode("a", special) for special in (False, True))
        starts = [i for i in range(len(whole)) if plain and whole[i : i + len(plain)] == plain]
        return (whole[: starts[0]], whole[starts[0] + len(plain) :]) if len(starts) == 1 else None

    def _token_bytes(self) -> pieces.TokenBytes | None:
        decoder = self._tokenizer.decoder
        recognised = pieces.recognise(json.loads(decoder.__getstate__()) if decoder is not None else None)
        if recognised is None:
            return None
        to_bytes, drops_first_space = recognised

        def of_id(token_id: int) -> bytes:
            token = self._tokenizer.id_to_token(token_id)
            return b"" if token is None else to_bytes(token)

        return pieces.TokenBytes(of_id, drops_first_space)


def _check_growth(tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    for name, step in (("normalizer", tokenizer.normalizer), ("decoder", tokenizer.decoder)):
        times = growth(json.loads(step.__getstate__())) if step is not None else 1.0
        if times > MAX_GROWTH:
            raise InvalidModel(
                f"The {name} of {path} can make a text {times:.3g} times as long, {MAX_GROWTH:.0f} times are allowed.",
                "Use the published tokenizer.json of the model.",
            )


def growth(step: Any) -> float:
    """At most how many characters one character becomes; `step`: a normalizer or decoder as tokenizer.json states it."""
    whole = 1.0
    for replace in _replacements(step):
        pattern, content = replace.get("pattern"), len(str(replace.get("content", "")))
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            shortest = len(pattern["String"])
        else:
            shortest = _shortest_match(pattern.get("Regex", "") if isinstance(pattern, dict) else "")
        # What matches nothing is found in front of every character, and leaves it there.
        whole *= max(1.0, content / shortest) if shortest else 1.0 + content
    return whole


def _replacements(step: Any) -> Iterator[dict[str, Any]]:
    """Every `Replace` in it, in whatever sequences of sequences."""
    left = [step]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            if item.get("type") == "Replace":
                yield item
            left += [value for value in item.values() if isinstance(value, dict | list)]


def _shortest_match(pattern: Any) -> int:
    """Characters of the shortest match of a regular expression; 0 for one that is not understood."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re._parser.parse(_UNICODE_CLASS.sub(".", pattern)).getwidth()[0]  # type: ignore[attr-defined]
    except (re.error, TypeError, OverflowError, RecursionError):
        return 0
