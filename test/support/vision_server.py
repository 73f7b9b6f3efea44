"""A whole server with a small random checkpoint that sees, and what the reference answers to the same requests."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from lightllm.tokenizer import Tokenizer, load_tokenizer
from support.metrics import samples
from support.server import LightLLMServer
from support.vision_models import VisionReference, make_vision_model
from support.vision_prompts import WRITINGS, set_chat_template

SECONDS = 120
OPTIONS = (
    "--device", "cpu", "--data_type", "fp32", "--max_total_token_num", "6000", "--chunked_prefill_size", "37",
    "--max_req_total_len", "512",
    "--cache_capacity_bytes", str(64 << 20), "--max_image_mb", "8",
)  # fmt: skip


class VisionServer:
    def __init__(self, server: LightLLMServer, reference: VisionReference, name: str) -> None:
        self.server = server
        self.reference = reference
        self.writing = WRITINGS[name]
        self.tokenizer: Tokenizer = load_tokenizer(str(reference.path))

    @property
    def url(self) -> str:
        return self.server.url

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=SECONDS)

    def prompt(
        self, text: str, images: Sequence[Image.Image], special: bool = True
    ) -> list[int | Image.Image]:
        """text: with {image} for each marker."""
        return self.writing.prompt(self.tokenizer, self.marked(text), images, special)

    def marked(self, text: str) -> str:
        return text.replace("{image}", self.writing.marker)

    def prompt_tokens(self, prompt: Sequence[int | Image.Image]) -> int:
        images = [part for part in prompt if not isinstance(part, int)]
        embeddings = self.reference.embeddings(images) if images else []
        return len(prompt) - len(images) + sum(map(len, embeddings))

    def body(self, text: str, images: Sequence[Image.Image | bytes], **parameters: Any) -> dict[str, Any]:
        """Of /generate and /generate_stream."""
        files = [image if isinstance(image, bytes) else png(image) for image in images]
        return {
            "inputs": self.marked(text),
            "parameters": {"ignore_eos": True, "return_details": True, **parameters},
            "multimodal_params": {
                "images": [{"type": "base64", "data": base64_text(file)} for file in files]
            },
        }

    def generate(self, text: str, images: Sequence[Image.Image | bytes], count: int) -> list[int]:
        """Token ids."""
        response = self.post("/generate", self.body(text, images, max_new_tokens=count))
        assert response.status_code == 200, response.text
        return [token["id"] for token in response.json()["tokens"]]

    def stream(self, text: str, images: Sequence[Image.Image | bytes], count: int) -> list[int]:
        """The same from /generate_stream."""
        response = self.post("/generate_stream", self.body(text, images, max_new_tokens=count))
        assert response.status_code == 200, response.text
        events = [json.loads(line[5:]) for line in response.text.splitlines() if line.startswith("data:")]
        # the end may come alone, with the last token once more
        return list(
            {event["token"]["count_output_tokens"]: event["token"]["id"] for event in events}.values()
        )

    def chat(self, messages: list[dict[str, Any]], count: int) -> dict[str, Any]:
        """The answer of /v1/chat/completions, with `token_ids`."""
        body = {
            "messages": messages,
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        response = self.post("/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        return response.json()

    def counter(self, name: str) -> int:
        """A counter of /metrics."""
        return int(samples(httpx.get(self.url + "/metrics", timeout=SECONDS).text)[name])

    def runtime_folder(self) -> Path:
        (folder,) = self.server.runtime_folders()
        return folder


@contextmanager
def vision_server(
    path: Path, name: str, *options: str, chat_template: str | None = None, std: float = 0.2
) -> Iterator[VisionServer]:
    """path: of the checkpoint, which is made."""
    reference = make_vision_model(path, name, std=std)
    if chat_template is not None:
        set_chat_template(path, chat_template)
    with LightLLMServer(["--model_dir", str(path), *OPTIONS, *options]) as server:
        yield VisionServer(server, reference, name)


def image_part(image: Image.Image | str, **more: Any) -> dict[str, Any]:
    """Of a chat message; an image or its URL."""
    return {
        "type": "image_url",
        "image_url": {"url": image if isinstance(image, str) else data_url(png(image)), **more},
    }


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def base64_text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64_text(file)


File = bytes | tuple[str, str] | Iterable[bytes]
"""What a path answers: a body, a status line and its Location, or parts of a body that comes for as long as it is read."""


@contextmanager
def file_server(files: Mapping[str, File]) -> Iterator[str]:
    """An HTTP server of files by path, in threads; its URL without a path. Other paths are 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = files.get(self.path, ("404 Not Found", ""))
            if isinstance(file, tuple):
                status, location = file
                self.send_response(int(status[:3]))
                self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif isinstance(file, bytes):
                self._begin(len(file))
                self.wfile.write(file)
            else:
                self._begin(None)
                with contextlib.suppress(OSError):
                    for part in file:
                        self.wfile.write(part)

        def _begin(self, length: int | None) -> None:
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
