"""Many images at once: order, hashes, limits, concurrency, and what happens when the client leaves."""

import asyncio
import base64
import dataclasses
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from PIL import Image
from support.drawn_images import RED, encoded, halves, png_header
from support.media_server import (
    LIMITS,
    Answer,
    MediaServer,
    endless_drip,
    local_fetcher,
    media_server,
    response,
)

from lightllm.errors import InvalidImage, ServerOverloaded
from lightllm.images import intake
from lightllm.images.intake import Intake
from lightllm.images.source import Base64Text, FileUrl, ImageSource, RemoteUrl, Size

PNG = encoded(halves())


def source(content: object, number: int = 0) -> ImageSource:
    return ImageSource(content, f"multimodal_params.images.{number}")  # type: ignore[arg-type]


def text(data: bytes) -> Base64Text:
    return Base64Text(base64.b64encode(data).decode())


def run(
    test: Callable[[Intake, MediaServer], Awaitable[None]], answers: dict[str, Answer], **limits: object
) -> None:
    async def main() -> None:
        async with media_server(answers) as server, asyncio.timeout(60):
            changed = dataclasses.replace(LIMITS, **limits)  # type: ignore[arg-type]
            taking = Intake(changed, local_fetcher(changed))
            try:
                await test(taking, server)
            finally:
                taking.close()

    asyncio.run(main())


def test_images_of_every_kind_come_back_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(gif := encoded(Image.new("RGB", (9, 8), RED), "GIF"))

    async def test(taking: Intake, server: MediaServer) -> None:
        sources = [
            source(RemoteUrl(server.url("/a.png"))), source(text(PNG)), source(Size(640, 480)),
            source(FileUrl(f"file://{tmp_path}/a.gif")), source(PNG),
        ]  # fmt: skip
        images = await taking.load(sources)
        assert [image.source for image in images] == sources
        assert [(image.width, image.height) for image in images] == [
            (40, 20),
            (40, 20),
            (640, 480),
            (9, 8),
            (40, 20),
        ]
        assert [image.data for image in images] == [PNG, PNG, None, gif, PNG]
        digest = hashlib.sha256(PNG).hexdigest()
        assert [image.sha256 for image in images[:3]] == [digest, digest, ""]

    run(test, {"/a.png": response(PNG)}, local_path=str(tmp_path))


def test_no_image_is_no_work() -> None:
    async def test(taking: Intake, _: MediaServer) -> None:
        assert await taking.load([]) == []

    run(test, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Base64Text("AAA"), "is no valid base64"), (Base64Text("A*=="), "is no valid base64"), (Base64Text("ünï="), "is no valid base64"),
        (text(PNG[:60]), "broken or cut short"), (text(b"<svg/>"), "but SVG"), (text(png_header(30_000, 30_000)), "--max_image_pixels"),
        (text(b"x" * 100_001), "100001 bytes, at most 100000"), (RemoteUrl("http://10.0.0.1/"), "no public address"),
        (FileUrl("file:///etc/passwd"), "reads no file URLs"), (b"", "but empty"),
    ],
)  # fmt: skip
def test_one_bad_image_ends_the_request_with_its_reason(content: object, message: str) -> None:
    async def test(taking: Intake, _: MediaServer) -> None:
        with pytest.raises(InvalidImage, match=message) as caught:
            await taking.load([source(PNG), source(content, 1)])
        assert caught.value.param == "multimodal_params.images.1" and caught.value.status == 400

    run(test, {})


def test_base64_may_have_line_breaks() -> None:
    async def test(taking: Intake, _: MediaServer) -> None:
        assert (await taking.load([source(Base64Text(base64.encodebytes(PNG).decode()))]))[0].data == PNG

    run(test, {})


def test_more_images_than_the_limit_are_refused_with_both_numbers() -> None:
    async def test(taking: Intake, _: MediaServer) -> None:
        with pytest.raises(InvalidImage, match=r"has 9 images, at most 8 \(--max_images\)"):
            await taking.load([source(PNG, number) for number in range(9)])

    run(test, {})


def test_the_images_of_one_request_are_bounded_together_and_those_of_several_are_not() -> None:
    async def test(taking: Intake, server: MediaServer) -> None:
        urls = [RemoteUrl(server.url(f"/{number}.png")) for number in range(3)]
        with pytest.raises(InvalidImage, match=r"more than \d+ bytes together \(--max_images_mb\)"):
            await taking.load([source(url, number) for number, url in enumerate(urls)])
        assert len(await taking.load([source(urls[0], 0), source(urls[1], 1), source(urls[0], 2)])) == 3
        assert len(await taking.load_all([[source(url, number)] for number, url in enumerate(urls)])) == 3

    pictures = [encoded(halves(40 + number, 20)) for number in range(3)]
    most = sum(map(len, pictures)) - 1
    answers = {f"/{number}.png": response(data) for number, data in enumerate(pictures)}
    run(test, answers, max_bytes_together=most)


def test_who_holds_what_is_loaded_is_told_of_every_image_and_may_refuse() -> None:
    pictures = [encoded(halves(40 + number, 20)) for number in range(3)]
    told: list[int] = []

    def hold(size: int) -> None:
        told.append(size)
        if size > sum(map(len, pictures[:2])):
            raise ServerOverloaded("no room", retry_after=1)

    async def test(taking: Intake, server: MediaServer) -> None:
        assert (
            len((await taking.load_all([[source(data, n) for n, data in enumerate(pictures[:2])]], hold))[0])
            == 2
        )
        assert len(told) == 2 and told[-1] == sum(map(len, pictures[:2]))
        with pytest.raises(ServerOverloaded):
            await taking.load_all([[source(data, n) for n, data in enumerate(pictures)]], hold)

    run(test, {})


def test_the_same_url_twice_in_a_request_is_fetched_once_and_sound_content_checked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[bytes] = []
    original = intake.check

    def counting(data: bytes, max_pixels: int, field: str) -> tuple[int, int]:
        checked.append(data)
        return original(data, max_pixels, field)

    monkeypatch.setattr(intake, "check", counting)

    async def test(taking: Intake, server: MediaServer) -> None:
        url = RemoteUrl(server.url("/a.png"))
        first, second = await taking.load([source(url, 0), source(url, 1)])
        assert first.sha256 == second.sha256 and second.source.field.endswith(".1")
        assert len(server.requests) == 1
        await taking.load([source(text(PNG))])
        assert checked == [PNG]

    run(test, {"/a.png": response(PNG)})


def test_downloads_run_together_but_not_more_than_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time: each waits until there are two, and a third would be counted."""
    monkeypatch.setattr(intake, "DOWNLOADS_AT_ONCE", 2)
    running, most = 0, 0
    pair = asyncio.Barrier(2)

    async def slow(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await pair.wait()
        running -= 1
        writer.write(response(PNG))
        await writer.drain()

    async def test(taking: Intake, server: MediaServer) -> None:
        await taking.load([source(RemoteUrl(server.url(f"/{number}"))) for number in range(6)])

    run(test, {f"/{number}": slow for number in range(6)})
    assert most == 2


def test_the_event_loop_runs_on_while_images_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check in the thread ends only when the event loop has taken a step meanwhile."""

    async def test(taking: Intake, _: MediaServer) -> None:
        loop = asyncio.get_running_loop()

        def needs_the_loop(data: bytes, max_pixels: int, field: str) -> tuple[int, int]:
            async def step() -> None:
                await asyncio.sleep(0)

            asyncio.run_coroutine_threadsafe(step(), loop).result(30)
            return 1, 1

        monkeypatch.setattr(intake, "check", needs_the_loop)
        assert (await taking.load([source(PNG)]))[0].width == 1

    run(test, {})


@pytest.mark.parametrize("reason", ["cancelled", "other image refused"])
def test_downloads_end_when_nothing_waits_for_them(reason: str) -> None:
    async def test(taking: Intake, server: MediaServer) -> None:
        sources = [source(RemoteUrl(server.url("/hang")))]
        if reason != "cancelled":
            sources.append(source(b"no image", 1))
        task = asyncio.create_task(taking.load(sources))
        if reason == "cancelled":
            while not server.requests:
                await asyncio.sleep(0.005)
            task.cancel()
        with pytest.raises((asyncio.CancelledError, InvalidImage)):
            await task
        if server.requests:
            await server.left.wait()

    run(test, {"/hang": endless_drip})
