from __future__ import annotations

import asyncio
import base64
import socket
from typing import Any

import pytest

from condistill.errors import CondistillError
from condistill.studio import server
from condistill.studio.server import Guard, check_access, is_loopback, open_socket

PASSWORD = "correct horse"


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the page"})


def get(
    path: str = "/",
    *,
    host: str = "127.0.0.1:7860",
    origin: str | None = None,
    password: str | None = None,
    guard_password: str | None = None,
    only_local: bool = True,
) -> Any:
    """Return the status, the headers and the body of a request to a guarded page."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin is not None else [])]
    if password is not None:
        headers.append((b"authorization", b"Basic " + base64.b64encode(f"anyone:{password}".encode())))
    scope = {"type": "http", "path": path, "headers": headers}
    app = Guard(_page, password=guard_password, only_local=only_local)
    asyncio.run(app(scope, lambda: None, send))  # type: ignore[arg-type, return-value]
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_WRONG_PASSWORD_SEC", 0.0)


def test_the_page_is_served_with_a_policy_that_forbids_every_other_host() -> None:
    status, headers, body = get()
    assert (status, body) == (200, b"the page")
    policy = headers[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "", "127.0.0.1.evil.example"])
def test_a_name_that_stands_for_this_machine_does_not_reach_a_local_studio(host: str) -> None:
    assert get(host=host)[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860"])
def test_the_own_names_of_this_machine_reach_it(host: str) -> None:
    assert get(host=host)[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://127.0.0.1.evil.example"])
def test_a_page_of_another_site_does_not_reach_a_local_studio(origin: str) -> None:
    assert get(origin=origin)[0] == 421
    assert get(origin="http://localhost:7860")[0] == 200


@pytest.mark.parametrize("given", [None, "", "wrong", PASSWORD + "x"])
def test_a_wrong_password_shows_nothing(given: str | None) -> None:
    status, headers, body = get(host="machine", password=given, guard_password=PASSWORD, only_local=False)
    assert status == 401
    assert b"the page" not in body
    assert headers[b"www-authenticate"].startswith(b"Basic")


def test_the_password_shows_the_page_with_any_user_name() -> None:
    assert get(host="machine", password=PASSWORD, guard_password=PASSWORD, only_local=False)[::2] == (200, b"the page")


@pytest.mark.parametrize(
    "path", ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=x", "/monitoring"]
)
def test_routes_for_files_and_other_hosts_do_not_exist(path: str) -> None:
    assert get(path)[0] == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "machine.example"])
def test_an_address_that_others_reach_needs_a_password(host: str) -> None:
    with pytest.raises(
        CondistillError, match=f"--host {host} lets other machines use the studio.*CONDISTILL_STUDIO_PASSWORD"
    ):
        check_access(host, None)
    check_access(host, PASSWORD)


def test_this_machine_needs_none_and_a_short_one_is_refused() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.0.1"):
        assert is_loopback(host)
        check_access(host, None)
    with pytest.raises(CondistillError, match="the password has 0 characters; give at least 8"):
        check_access("127.0.0.1", "")


def test_a_port_in_use_is_named_and_without_one_the_next_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CondistillError, match=f"port {port} of 127.0.0.1 is in use.*leave it out"):
            open_socket("127.0.0.1", port)
        monkeypatch.setattr(server, "FIRST_PORT", port)
        with open_socket("127.0.0.1", None) as free:
            assert port < free.getsockname()[1] < port + server.PORTS
        monkeypatch.setattr(server, "PORTS", 1)
        with pytest.raises(CondistillError, match=f"the ports {port} to {port} of 127.0.0.1 are in use"):
            open_socket("127.0.0.1", None)


@pytest.mark.parametrize("host", ["no such host", "203.0.113.7"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(CondistillError, match=f"--host {host}"):
        open_socket(host, 0)
