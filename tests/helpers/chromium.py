"""A real, headless Chromium, driven through pipes: no package and no port is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)

_CONNECT = """
import os, sys
for number, place in ((int(sys.argv[1]), 63), (int(sys.argv[2]), 64)):
    os.dup2(number, place)
for number, place in ((63, 3), (64, 4)):
    os.dup2(number, place, inheritable=True)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""A program that becomes the browser, with its pipes as files 3 and 4."""


def find_chromium() -> str | None:
    """Return the path of an installed Chromium; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page in the browser."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._number, self._buffer, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        """Everything that the browser has reported."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Load an address in a window of a size, in a light or a dark theme."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def wait_for(self, script: str, timeout_sec: float = 30.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + timeout_sec
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} is not true on: {self.run('document.body.innerText')}")
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Type text into what has the focus."""
        self._call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press and release a key, such as Enter (13) or Tab (9)."""
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def screenshot(self, file: Path) -> None:
        """Write a PNG of the whole page."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def addresses(self) -> set[str]:
        """Return every address that the pages have requested."""
        requests = [each["params"] for each in self.events if each.get("method") == "Network.requestWillBeSent"]
        return {params["request"]["url"] for params in requests}

    def mistakes(self) -> list[str]:
        """Return the errors of scripts and of the console, and every dialog."""
        names = {"Runtime.exceptionThrown", "Page.javascriptDialogOpening"}
        found = [json.dumps(each["params"])[:500] for each in self.events if each.get("method") in names]
        entries = [each["params"]["entry"] for each in self.events if each.get("method") == "Log.entryAdded"]
        return found + [entry["text"] for entry in entries if entry["level"] == "error"]

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = os.read(self._reading, 1 << 16)
            if not block:
                raise RuntimeError("Chromium has ended")
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def open_tab(chromium: str) -> Iterator[Tab]:
    """Yield a page of a new browser with a profile of its own."""
    to_browser, ours_to = os.pipe()
    ours_from, from_browser = os.pipe()

    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        browser = [chromium, *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-c", _CONNECT, str(to_browser), str(from_browser), *browser],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Tab(ours_from, ours_to)
        finally:
            process.kill()
            process.wait()
            os.close(ours_to)
            os.close(ours_from)
