"""A studio that is served on this machine, and a client that speaks gradio's protocol without its package."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

GENERATE = {"steps": 2, "guidance": 3.0, "seed": 0, "own": False}


@dataclass
class Studio:
    """A running studio."""

    url: str
    desk: Any
    page: Any
    lines: list[str] = field(default_factory=list)
    """What it has printed."""


@contextmanager
def serve(*sources: Path, password: str | None = None) -> Iterator[Studio]:
    """Yield a studio of runs and pipelines, in this process."""
    from condistill.studio.server import Server, build_app, open_socket, quiet_gradio

    quiet_gradio()
    from condistill.studio.desk import Desk
    from condistill.studio.page import build_page
    from condistill.studio.sources import find_sources

    lines: list[str] = []
    desk = Desk(find_sources([str(source) for source in sources]), torch.device("cpu"), say=lines.append)
    listening = open_socket("127.0.0.1", 0)
    page = build_page(desk)
    server = Server(build_app(page, host="127.0.0.1", password=password), listening)
    server.start()
    try:
        yield Studio(f"http://127.0.0.1:{listening.getsockname()[1]}", desk, page, lines)
    finally:
        server.stop()
        desk.close()


class Client:
    """A user of a studio."""

    def __init__(self, studio: Studio, http: Any) -> None:
        """Take a connection, an `httpx.AsyncClient`."""
        self._url, self._http, self._calls = studio.url, http, studio.page.config["dependencies"]
        self.session = uuid.uuid4().hex

    async def call(self, name: str, *values: Any) -> list[Any]:
        """Press what has an API name, and return its last outputs; `updates` has those before."""
        async for _ in self.updates(name, *values):
            pass
        return self.last

    async def updates(self, name: str, *values: Any) -> AsyncIterator[str]:
        """Press what has an API name, and yield each message that the page gets."""
        number = next(each["id"] for each in self._calls if each["api_name"] == name)
        body = {"data": list(values), "fn_index": number, "session_hash": self.session}
        (await self._http.post(f"{self._url}/gradio_api/queue/join", json=body)).raise_for_status()
        address = f"{self._url}/gradio_api/queue/data"
        async with self._http.stream("GET", address, params={"session_hash": self.session}, timeout=None) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                yield line
                if message["msg"] == "process_completed":
                    assert message["success"], message
                    self.last: list[Any] = message["output"]["data"]
                    return

    async def generate(self, prompt: Any, models: Any, **changes: Any) -> list[Any]:
        """Type a prompt and press the button; return the status and one output per model."""
        return await self.call("generate", *values_of(prompt, models, **changes))


def values_of(prompt: Any, models: Any, **changes: Any) -> list[Any]:
    """Return the values of all controls in the order of the page."""
    chosen = {**GENERATE, **changes}
    return [prompt, chosen["steps"], chosen["guidance"], chosen["seed"], models, chosen["own"]]


def pixels(html: str) -> NDArray[np.uint8]:
    """Return the image in a piece of HTML."""
    found = re.search(r'src="data:image/\w+;base64,([^"]+)"', html)
    assert found, html[:500]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB"))


def run(work: Any) -> Any:
    """Run a coroutine function, which gets an `httpx.AsyncClient`."""
    import httpx

    async def with_client() -> Any:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=200), timeout=60) as http:
            return await work(http)

    return asyncio.run(with_client())
