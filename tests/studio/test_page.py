"""The page over HTTP: a real server on this machine, tiny pipelines, and no browser."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from studio_runs import EVIL, train, write_run

from condistill.studio.engine import ImageRequest, ModelImage, Watch
from condistill.utils.terminal import print_line

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio, of the extra studio, is missing"),
]
MODELS = ["teacher", "plain"]


@pytest.fixture(scope="module")
def studio(
    tiny_pipeline_dir: Path, tiny_v_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    from studio_server import serve

    run = write_run(tmp_path_factory.mktemp("studio"), tiny_pipeline_dir, {"plain": tiny_v_pipeline_dir})
    train(run, "random_conditioning", 10)
    with serve(run) as studio:
        yield studio


def alone(studio: Any, seed: int, model: str = "plain", *, steps: int = 2) -> Any:
    """Return the image that a model generates for a seed while nobody else uses it."""
    (image,) = studio.desk._engine.generate(ImageRequest("a red star", (model,), seed, steps, 3.0), Watch())
    assert isinstance(image, ModelImage)
    return image.pixels


def test_type_press_and_the_images_appear_with_seconds_and_memory(studio: Any) -> None:
    from studio_server import Client, pixels, run

    status, teacher, plain = run(lambda http: Client(studio, http).generate("a red star", MODELS, seed=4))
    assert "Finished after" in status
    assert "a red star, seed 4" in status
    for html, name in ((teacher, "teacher"), (plain, "plain")):
        assert np.array_equal(pixels(html), alone(studio, 4, name))
        assert f"<strong>{name}</strong>" in html
        assert "s</span><span>" in html
        assert "MiB at the peak</span>" in html
        assert "2 steps, guidance 3</span>" in html


def test_50_requests_at_once_are_all_answered_each_with_the_image_of_its_own_seed(studio: Any) -> None:
    from studio_server import Client, pixels, run, values_of

    async def all_at_once(http: Any) -> Any:
        async def one(seed: int) -> tuple[str, str, str]:
            client = Client(studio, http)
            seen = [
                line
                async for line in client.updates("generate", *values_of("a red star", ["plain"], seed=seed, steps=1))
            ]
            return "".join(seen), client.last[0], client.last[2]

        return await asyncio.gather(*(one(seed % 10) for seed in range(50)))

    answers = run(all_at_once)
    expected = [alone(studio, seed, steps=1) for seed in range(10)]
    assert len(answers) == 50
    for number, (_, status, html) in enumerate(answers):
        assert "Finished after" in status
        assert np.array_equal(pixels(html), expected[number % 10])
    assert sum("Waiting: " in seen for seen, _, _ in answers) > 40
    assert len(studio.desk.line) == 0
    assert studio.desk._of_session == {}


def test_what_the_server_keeps_of_its_users_is_limited(studio: Any) -> None:
    from studio_server import Client, run

    async def many(http: Any) -> None:
        await asyncio.gather(*(Client(studio, http).generate("", MODELS) for _ in range(66)))

    run(many)
    assert len(studio.page.state_holder.session_data) <= 64


def test_a_password_guards_the_page_and_its_calls(studio: Any, tiny_pipeline_dir: Path) -> None:
    from studio_server import Client, run, serve

    async def look(http: Any) -> Any:
        without = [(await http.get(url)).status_code for url in (guarded.url, f"{guarded.url}/gradio_api/info")]
        http.auth = ("anyone", "correct horse")
        return without, await Client(guarded, http).generate("a red star", ["pipeline"])

    with serve(tiny_pipeline_dir, password="correct horse") as guarded:
        without, answer = run(look)
    assert without == [401, 401]
    assert "Finished after" in answer[0]


@pytest.mark.parametrize(
    ("prompt", "models", "changes", "message"),
    [
        ("", MODELS, {}, "the prompt is empty"),
        ("x" * 3000, MODELS, {}, "the prompt has 3,000 characters"),
        ("a star", [], {}, "no model is chosen"),
        ("a star", ["<b>"], {}, "there is no model &#x27;&lt;b&gt;&#x27;; the models are teacher, plain"),
        ("a star", MODELS, {"steps": 0}, "the number of steps is 0"),
        ("a star", MODELS, {"steps": None}, "the number of steps is ; give"),
        ("a star", MODELS, {"guidance": "<i>"}, "the guidance scale is &lt;i&gt;; give a number from 0 to 100"),
        ("a star", MODELS, {"seed": -3}, "the seed is -3; give a whole number"),
        ("a star", 7, {"seed": []}, "no model is chosen"),
    ],
)
def test_a_mistake_is_a_message_on_the_page(
    studio: Any, prompt: Any, models: Any, changes: dict[str, Any], message: str
) -> None:
    from studio_server import Client, run

    status = run(lambda http: Client(studio, http).generate(prompt, models, **changes))[0]
    assert message in status
    assert 'class="status error"' in status


def test_a_prompt_with_markup_and_terminal_escapes_is_text_on_the_page_and_in_the_terminal(studio: Any) -> None:
    from studio_server import Client, run

    answer = run(lambda http: Client(studio, http).generate(EVIL, ["plain"]))
    html = "".join(part for part in answer if isinstance(part, str))
    assert "<script" not in html
    assert "\x1b" not in html
    assert 'alt="plain: &lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J"' in html
    screen = Console(file=io.StringIO(), force_terminal=True)
    print_line(screen, studio.lines[-1])
    assert "\x1b[2J" not in screen.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[2J" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_stop_ends_the_own_request_between_two_steps_and_no_other(studio: Any) -> None:
    from studio_server import Client, run, values_of

    async def stop_one(http: Any) -> Any:
        stopped, other = Client(studio, http), Client(studio, http)
        waiting = None
        async for line in stopped.updates("generate", *values_of("a star", ["plain"], steps=900)):
            if "Step " in line and waiting is None:
                waiting = asyncio.create_task(other.generate("a red star", ["plain"], seed=1))
                await Client(studio, http).call("stop")  # of a third user
                presser = Client(studio, http)
                presser.session = stopped.session
                studio.desk.stop(stopped.session)
        assert waiting is not None
        return stopped.last, await waiting

    stopped, other = run(stop_one)
    assert "Stopped; 0 image(s) were finished." in stopped[0]
    assert "Finished after" in other[0]


def test_a_page_that_is_closed_stops_its_request(studio: Any) -> None:
    from studio_server import Client, run, values_of

    async def leave(http: Any) -> None:
        async for line in Client(studio, http).updates("generate", *values_of("a star", ["plain"], steps=900)):
            if "Step " in line:
                return

    run(leave)
    end = time.monotonic() + 10
    while len(studio.desk.line):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_cache_is_shown_page_by_page_with_its_prompts(studio: Any) -> None:
    from studio_server import Client, run

    name = str(studio.desk.sources.runs[0])
    number, status, html = run(lambda http: Client(studio, http).call("cache", name, 2, ""))
    assert (number, "20 images, page 2 of 2" in status) == (2, True)
    assert html.count("<img") == 8
    assert "19: a red star 19" in html
    assert "the page is no number" in run(lambda http: Client(studio, http).call("cache", name, "x", ""))[1]
    assert "not in the studio" in run(lambda http: Client(studio, http).call("cache", "/etc", 1, ""))[1]


def test_a_running_distillation_is_followed(studio: Any) -> None:
    from studio_server import Client, run

    name = str(studio.desk.sources.runs[0])

    async def twice(http: Any) -> Any:
        client = Client(studio, http)
        return await client.call("follow", name, None), await client.call("follow", name, None)

    (now, losses, previews, stages, *_), again = run(twice)
    assert "2:05 left of this part" in now
    assert "random_conditioning from 1.00 at step 1 to 0.100 at step 10" in losses
    assert "<img" in previews
    assert "<li>distill plain: " in stages
    assert not any(isinstance(piece, str) for piece in again[1:4])  # what did not change is not sent again


def test_the_page_names_no_other_host_and_has_no_route_for_files(studio: Any) -> None:
    from studio_server import run

    async def look(http: Any) -> Any:
        return [await http.get(studio.url + path) for path in ("/", "/theme.css", "/gradio_api/file=/etc/passwd")]

    page, theme, file = run(look)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert set(re.findall(r"https?://[^'\"/ ]+", theme.text)) <= {"http://www.w3.org"}  # a name space, not an address
    assert file.status_code == 404


def test_the_command_takes_the_next_free_port_and_ends_with_ctrl_c(tiny_pipeline_dir: Path) -> None:
    from urllib.request import urlopen

    command = [sys.executable, "-m", "condistill", "studio", str(tiny_pipeline_dir)]
    taken: list[socket.socket] = []
    with contextlib.suppress(OSError):  # another program may have it
        taken.append(socket.create_server(("127.0.0.1", 7860)))
    environment = {name: value for name, value in os.environ.items() if name != "CONDISTILL_STUDIO_PASSWORD"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = line.split()[1]
        assert line == f"studio: {address} on cpu, with pipeline\n" or "cuda" in line
        assert address != "http://127.0.0.1:7860"
        with urlopen(address, timeout=30) as page:
            assert page.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == "press Ctrl-C to end it\nthe studio has ended\n"
    finally:
        process.kill()
        for each in taken:
            each.close()
