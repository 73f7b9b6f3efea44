"""What images cost: the first token of an image that was seen before, and text while images are encoded.

    python test/benchmark/images.py seen                    time to the first token: a new image, and the same again
    python test/benchmark/images.py beside [--interval 4]   output tokens/s of text streams while images come in

The model has random weights in the shape of LLaVA-1.5 7B: CLIP ViT-L/14 at 336 x 336 as it is, and a language model of as wide layers,
of which there are --layers. Needs an otherwise idle machine.

`beside` gives the server the same load three times: text streams alone; with images that are in its cache, each behind a text
of its own, so that nothing but the encoder is spared; and with new images. What the encoder costs the text is the ratio of the last
two.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.serving.with_server import running_server  # noqa: E402
from support.checkpoints import write_tokenizer  # noqa: E402

from lightllm.bench.apis import NativeApi, Outcome  # noqa: E402
from lightllm.bench.http_stream import Target, post_events  # noqa: E402

MARKER, IMAGE_ID = "<image>", 383
TIMEOUT = 600.0
CLIP_L_336 = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip


def llama(hidden: int, layers: int) -> dict[str, object]:
    """Llama 2's proportions: 4096 wide is 7B's."""
    heads = hidden // 128
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": hidden * 43 // 16, "num_attention_heads": heads,
        "num_key_value_heads": heads, "num_hidden_layers": layers, "vocab_size": 32064, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip


def write_model(folder: Path, hidden: int, layers: int) -> None:
    """A folder that `--load_way dummy` serves."""
    folder.mkdir()
    write_tokenizer(folder, IMAGE_ID)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    marker = {"id": IMAGE_ID, "content": MARKER, "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"].append({**marker, "normalized": False, "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": IMAGE_ID,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
        "text_config": llama(hidden, layers), "vision_config": CLIP_L_336, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


class Client:
    def __init__(self, port: int) -> None:
        self._target, self._api = Target("127.0.0.1", port), NativeApi(ignore_eos=True)
        self._random = random.Random(port)

    def picture(self) -> str:
        """A new photo-sized JPEG in base64."""
        small = np.frombuffer(self._random.randbytes(40 * 30 * 3), np.uint8).reshape(30, 40, 3)
        file = io.BytesIO()
        Image.fromarray(small).resize((800, 600)).save(file, "JPEG")
        return base64.b64encode(file.getvalue()).decode()

    def words(self, count: int) -> str:
        return " ".join(self._random.choice(("quick", "brown", "fox", "lazy", "dog")) for _ in range(count))

    async def send(self, text: str, output: int, picture: str | None = None) -> Outcome:
        outcome = Outcome(output, start=time.perf_counter())
        await self.send_into(outcome, text, picture)
        return outcome

    async def send_into(self, outcome: Outcome, text: str, picture: str | None = None) -> None:
        """The outcome grows as tokens come."""
        parameters = {"max_new_tokens": outcome.wanted_tokens, "do_sample": False, "ignore_eos": True}
        images = [] if picture is None else [{"type": "base64", "data": picture}]
        body = {"inputs": text, "parameters": parameters, "multimodal_params": {"images": images}}

        def take(data: bytes, now: float) -> None:
            self._api.read(data, now, outcome)

        await post_events(self._target, self._api.path, json.dumps(body).encode(), take, TIMEOUT)


async def seen(client: Client, options: argparse.Namespace) -> None:
    """Question before and after the image are the same: the second time all of the prompt but its last token is known."""
    await client.send(f"Warm {MARKER} up", 2, client.picture())
    rows = []
    for _ in range(options.repeat):
        text, picture = f"{client.words(8)} {MARKER} {client.words(24)}", client.picture()
        first = await client.send(text, 2, picture)
        again = await client.send(text, 2, picture)
        other = await client.send(text + client.words(8), 2, picture)
        rows.append((first.ttft, again.ttft, other.ttft))
    first, again, other = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"medians of {options.repeat}, time to the first token in s")
    print(f"{'new image':>12}{'again':>12}{'ratio':>8}{'other question':>16}{'ratio':>8}")
    print(f"{first:12.3f}{again:12.3f}{again / first:8.2f}{other:16.3f}{other / first:8.2f}")


async def beside(client: Client, options: argparse.Namespace) -> None:
    known = [client.picture() for _ in range(4)]
    for picture in known:
        await client.send(f"{client.words(8)} {MARKER}", 1, picture)
    kinds = {
        "text alone": None,
        "with images in the cache": lambda: known[0],
        "with new images": client.picture,
    }
    print(
        f"{options.streams} text streams, an image every {options.interval:g} s, {options.seconds:g} s each"
    )
    for name, make in kinds.items():
        tokens, ttfts = await _loaded(client, options, make)
        images = f"{len(ttfts):4} images, median TTFT {statistics.median(ttfts):6.2f} s" if ttfts else ""
        print(f"{name:28}{tokens / options.seconds:8.2f} output tokens/s {images}", flush=True)


async def _loaded(client: Client, options: argparse.Namespace, make: object) -> tuple[int, list[float]]:
    """Output tokens of the text streams within the time, and seconds to the first token of the requests with images."""
    outcomes: list[Outcome] = []
    ttfts: list[float] = []

    async def stream() -> None:
        while True:
            outcomes.append(Outcome(options.output, start=time.perf_counter()))
            await client.send_into(outcomes[-1], client.words(48))

    async def image(picture: str) -> None:
        outcome = await client.send(f"{client.words(8)} {MARKER} what?", 1, picture)
        ttfts.append(outcome.ttft)

    async def images() -> None:
        async with asyncio.TaskGroup() as group:
            while make is not None:
                group.create_task(image(make()))
                await asyncio.sleep(options.interval)

    tasks = [asyncio.create_task(stream()) for _ in range(options.streams)]
    while len(outcomes) < options.streams or any(not outcome.times for outcome in outcomes):
        await asyncio.sleep(0.01)
    tasks.append(asyncio.create_task(images()))
    start = time.perf_counter()
    await asyncio.sleep(options.seconds)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    end = start + options.seconds
    return sum(start < moment <= end for outcome in outcomes for moment in outcome.times), ttfts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("figure", choices=("seen", "beside"))
    parser.add_argument("--server", default="", help="more options of the server")
    parser.add_argument(
        "--hidden", type=int, default=4096, help="width of the language model, a multiple of 128"
    )
    parser.add_argument("--layers", type=int, default=2, help="of the language model")
    parser.add_argument("--repeat", type=int, default=5, help="seen: images")
    parser.add_argument("--streams", type=int, default=4, help="beside: text streams at once")
    parser.add_argument("--output", type=int, default=128, help="beside: tokens of a text")
    parser.add_argument(
        "--interval", type=float, default=4.0, help="beside: seconds from one image to the next"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="beside: of each of the three loads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder, "model"), options.hidden, options.layers)
        server = [
            "--model_dir", f"{folder}/model", "--load_way", "dummy", "--device", "cpu", "--max_total_token_num", "8192",
            *shlex.split(options.server),
        ]  # fmt: skip
        with running_server(server) as port:
            asyncio.run({"seen": seen, "beside": beside}[options.figure](Client(port), options))


if __name__ == "__main__":
    main()
