"""Serve the page on one address, to those who may see it, and load nothing from anywhere else."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import inspect
import ipaddress
import os
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from condistill.errors import CondistillError, system_message

FIRST_PORT, PORTS = 7860, 20
SHORTEST_PASSWORD = 8
_WRONG_PASSWORD_SEC = 1.0
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""What the page may load: nothing from another host."""
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_UNUSED = ("/upload", "/file", "/proxy", "/component_server", "/monitoring", "/stream", "/vibe", "/custom_component")
"""Routes of gradio that the page does not need: files, other hosts, and statistics."""

_CONTRAST: dict[str, Any] = {
    "color_accent": "*primary_700",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_800",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_label_text_color": "*neutral_700",
    "block_title_text_color": "*neutral_700",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
}
"""Colours of gradio's theme that have too little contrast in its own version."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_access(host: str, password: str | None) -> None:
    """Check that an address that other machines reach has a password.

    Raises:
        CondistillError: it has none, or a short one.
    """
    if password is not None and len(password) < SHORTEST_PASSWORD:
        raise CondistillError(
            f"the password has {len(password)} characters; give at least {SHORTEST_PASSWORD}, in the environment "
            "variable CONDISTILL_STUDIO_PASSWORD or with --password"
        )
    if password is None and not is_loopback(host):
        raise CondistillError(
            f"--host {host} lets other machines use the studio, so it needs a password: set the environment variable "
            "CONDISTILL_STUDIO_PASSWORD, or give --password; without --host, only this machine can use it"
        )


def open_socket(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens.

    Args:
        port: None: the first free one from 7860.

    Raises:
        CondistillError: the port is in use, or the address is not of this machine.
    """
    ports = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else range(port, port + 1)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in ports:
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if error.errno in (getattr(socket, "EAI_NONAME", None),) or isinstance(error, socket.gaierror):
                raise CondistillError(f"--host {host} is no address; give one of this machine") from error
            if error.errno in _NOT_HERE:
                raise CondistillError(
                    f"--host {host}: {system_message(error)}; give an address of this machine"
                ) from error
    if port is None:
        raise CondistillError(f"the ports {ports.start} to {ports.stop - 1} of {host} are in use; give one with --port")
    raise CondistillError(
        f"port {port} of {host} is in use or not permitted; give another --port, or leave it out for the next free one"
    )


_NOT_HERE = (99, 49, 10049)
"""EADDRNOTAVAIL on Linux, macOS and Windows."""


class Guard:
    """Lets through who may use the studio, and adds headers that forbid everything from outside."""

    def __init__(self, app: Any, *, password: str | None, only_local: bool) -> None:
        """Guard an ASGI application.

        Args:
            password: of HTTP's basic authentication, with any user name; None: nobody needs one.
            only_local: whether requests to another name than this machine's own, and from pages of other names, are
                refused: a page of another site could otherwise reach the studio through the user's browser.
        """
        self._app, self._password, self._only_local = app, password, only_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin", "").partition("://")[2]
        names = [headers.get("host", ""), *([origin] if "origin" in headers else [])]
        if self._only_local and not all(is_loopback(_host_name(name)) for name in names):
            await _answer(send, 421, "This studio answers only to this machine's own name, such as 127.0.0.1.")
            return
        if self._password is not None and not self._has_password(headers.get("authorization", "")):
            if headers.get("authorization"):
                await asyncio.sleep(_WRONG_PASSWORD_SEC)
            challenge = 'Basic realm="condistill studio, any user name", charset="UTF-8"'
            await _answer(send, 401, "This studio needs a password.", {"www-authenticate": challenge})
            return
        if any(part in scope["path"] for part in _UNUSED):
            await _answer(send, 404, "The studio has no such page.")
            return
        await self._app(scope, receive, _with_headers(send))

    def _has_password(self, authorization: str) -> bool:
        kind, _, content = authorization.partition(" ")
        try:
            given = base64.b64decode(content, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given.encode(), (self._password or "").encode())


def _host_name(header: str) -> str:
    """Return the name in a Host header, without its port."""
    return header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return send_with_headers


async def _answer(send: Send, code: int, text: str, headers: dict[str, str] | None = None) -> None:
    named = {"content-type": "text/plain; charset=utf-8", **_HEADERS, **(headers or {})}
    await send(
        {
            "type": "http.response.start",
            "status": code,
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        }
    )
    await send({"type": "http.response.body", "body": text.encode()})


def build_app(page: Any, *, host: str, password: str | None) -> Guard:
    """Return the application that serves a page."""
    import fastapi
    import gradio as gr

    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
    ).set(**_CONTRAST)
    options: dict[str, Any] = {
        "theme": theme,
        "css": (Path(__file__).parent / "style.css").read_text(encoding="utf-8"),
        "footer_links": [],
        "run_history": False,
        "show_error": True,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "pwa": False,
        "max_file_size": 1,
    }
    accepted = inspect.signature(gr.mount_gradio_app).parameters
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    options = {name: value for name, value in options.items() if name in accepted}
    mounted = gr.mount_gradio_app(app, page, path="/", **options)
    return Guard(mounted, password=password, only_local=is_loopback(host))


class Server:
    """Serves an application on a socket from a thread of its own."""

    def __init__(self, app: Any, listening: socket.socket) -> None:
        import uvicorn

        config = uvicorn.Config(
            app, log_level="critical", access_log=False, timeout_graceful_shutdown=1, timeout_keep_alive=30, ws="none"
        )
        self._server = uvicorn.Server(config)
        self._socket = listening
        self._thread = threading.Thread(target=self._serve, name="studio-server", daemon=True)

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until a signal comes, or the server ends by itself."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def stop(self) -> None:
        """End the server; what still loads is cut off."""
        self._server.should_exit = True
        self._thread.join(5.0)
        self._socket.close()


def quiet_gradio() -> None:
    """Set the variables that keep gradio from calling other hosts; before it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
