"""CPU time of the Detokenizer per output token: decode, detokenize, match stop strings, encode, over real sockets.

    python test/benchmark/detokenizer_round.py [--tokenizer byte_level | --model_dir DIR] [--streams 32] [--tokens 256]
        [--stops 0]

Plays Router and Http Server in this process and counts only the time between receiving a round and having sent its
text. The target is 12 microseconds per token at 32 streams. Also prints what decoding alone costs, and the memory of a
stream.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support import tokenizers

from lightllm.detokenizer.detokenizer import Detokenizer
from lightllm.detokenizer.process import step
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice, Finish, RoundTokens
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import Tokenizer, load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_dir", help="a folder with a tokenizer; default: a small one")
    parser.add_argument(
        "--tokenizer",
        default="byte_level",
        help="kind of the small one: a name in test/support/tokenizers.py",
    )
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="output tokens per stream")
    parser.add_argument("--stops", type=int, default=0, help="stop strings per request")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model_dir = args.model_dir or str(getattr(tokenizers, args.tokenizer)(Path(folder) / "model"))
        tokenizer = load_tokenizer(model_dir)
        size, decoding = stream_size(tokenizer), decoding_seconds(tokenizer)
        seconds, received = measure(Path(folder), tokenizer, args.streams, args.tokens, args.stops)
    tokens = args.streams * args.tokens
    print(
        f"{args.streams} streams, {args.stops} stop strings: {seconds / tokens * 1e6:.2f} us per token, "
        f"{seconds / args.tokens * 1e6:.0f} us per round ({received} characters of text); "
        f"decoding alone {decoding * 1e6:.2f} us per token, {size:.0f} bytes a stream"
    )


def stream_size(tokenizer: Tokenizer, count: int = 20_000) -> float:
    """Resident memory of one stream in mid-text, in bytes: of the process, since libraries keep theirs outside Python."""
    ids = tokenizer.encode(tokenizers.CORPUS[0] * 2, add_special_tokens=False)
    before = _resident()
    streams = [tokenizer.stream(ids) for _ in range(count)]
    for stream in streams:
        for token_id in ids[:4]:
            stream.push(token_id)
    return (_resident() - before) / count


def decoding_seconds(tokenizer: Tokenizer) -> float:
    """CPU seconds of `TextStream.push`: the best of ten texts of some thousand tokens."""
    ids = tokenizer.encode(" ".join(tokenizers.CORPUS * 10), add_special_tokens=False)

    def once() -> float:
        push = tokenizer.stream(ids[:8]).push
        start = time.thread_time()
        for token_id in ids:
            push(token_id)
        return time.thread_time() - start

    return min(once() for _ in range(10)) / len(ids)


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(folder: Path, tokenizer: Tokenizer, streams: int, tokens: int, stops: int) -> tuple[float, int]:
    """Returns (CPU seconds of the Detokenizer, characters that the Http Server got)."""
    runtime = RuntimeDir(folder)
    context = make_context()
    detokenizer = Detokenizer(tokenizer, [], 1)
    epoch = Epoch(0)
    intake = PullChannel(context, runtime.detokenizer_intake, codec.to_detokenizer, epoch)
    to_router = PushChannel(context, runtime.router_intake, epoch)
    to_http = [PushChannel(context, runtime.http_results(0), epoch)]
    http = PullChannel(context, runtime.http_results(0), codec.to_http, epoch)
    router = PushChannel(context, runtime.detokenizer_intake, epoch)
    ids = tokenizer.encode(" ".join(tokenizers.CORPUS * 4), add_special_tokens=False)
    params = SamplingParams(
        max_new_tokens=tokens, stop_sequences=[f"\n\nHuman {i}:" for i in range(stops)]
    ).verify()
    for request_id in range(streams):
        router.send(AddRequest(int32(ids[:64]), params, [Choice(request_id, 0)]))
        intake.wait(1000)
        step(detokenizer, epoch, intake, to_router, to_http)
    offsets = [random.Random(i).randrange(len(ids)) for i in range(streams)]
    requests = list(range(streams))
    seconds, characters = 0.0, 0
    for position in range(tokens):
        last = position == tokens - 1
        finished = [Finish(i, "length", 64, tokens) for i in requests] if last else []
        new = [ids[(offset + position) % len(ids)] for offset in offsets]
        router.send(RoundTokens(requests, new, [-1.25] * streams, finished=finished))
        intake.wait(1000)
        start = time.thread_time()
        step(detokenizer, epoch, intake, to_router, to_http)
        seconds += time.thread_time() - start
        http.wait(1000)
        characters += sum(map(len, http.receive().texts))
    context.destroy(linger=0)
    return seconds, characters


if __name__ == "__main__":
    main()
