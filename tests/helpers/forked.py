"""Python processes that start at once: forks of one process that has imported what is slow to import.

`quick_python()` is a program for `subprocess` in the place of `sys.executable`. It is a small process with the standard
streams, the environment and the directory of its caller; it lets the process that has the imports fork one that runs
the script, module or code, passes signals on to it, and ends as it ends. Tests of what happens at the start of an
interpreter use `sys.executable`.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_quick: list[str] = []
_lease: list[socket.socket] = []


def quick_python() -> str:
    """Return the path of the program; the first call of a test session starts the process that forks.

    All workers of a session share this process, and it ends after them.
    """
    import fcntl
    import subprocess
    import tempfile
    import time
    from pathlib import Path

    if not hasattr(os, "fork"):
        return sys.executable
    if _quick:
        return _quick[0]
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")
    folder = Path(tempfile.gettempdir()) / f"condistill-forks-{session[:12]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    address, program = folder / "socket", folder / "python"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
            server = subprocess.Popen(
                [sys.executable, __file__, "serve", str(address)],
                env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            while not address.exists():
                assert server.poll() is None, "the process that forks has ended"
                time.sleep(0.02)
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" run "{address}" "$@"\n')
            program.chmod(0o700)
        _lease.append(_connect(str(address)))
    _lease[0].sendall(b"lease")
    _quick.append(str(program))
    return _quick[0]


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    return connection


def run(address: str, arguments: list[str]) -> NoReturn:
    """Be the program: let a process be forked, pass signals on to it, and end as it ends."""
    process, early = 0, []

    def pass_on(number: int, _: object) -> None:
        if process:
            os.kill(process, number)
        else:
            early.append(number)

    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    request = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}  # noqa: PTH109
    content = json.dumps(request).encode()
    streams = array.array("i", [0, 1, 2])
    with _connect(address) as connection:
        connection.sendmsg([len(content).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        connection.sendall(content)
        answers = connection.makefile("r")
        process = int(answers.readline())
        for number in early:
            os.kill(process, number)
        status = int(answers.readline())
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def preload() -> None:
    """Import what nearly every command imports, and let tests measure no more times than they must."""
    import gc
    import importlib
    import warnings

    from condistill.utils.quiet import quiet_environment

    quiet_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (
            "condistill.cli",
            "condistill.workflow.compress",
            "condistill.report.html",
            "condistill.report.plots",
            "condistill.miniature.build",
            "torch.distributed.run",
            "torch.utils.tensorboard",
        ):
            importlib.import_module(name)
        for name in ("StableDiffusionPipeline", "DDIMScheduler", "AutoencoderKL", "UNet2DConditionModel"):
            getattr(importlib.import_module("diffusers"), name)
        for name in ("CLIPTextModel", "CLIPTokenizer"):
            getattr(importlib.import_module("transformers"), name)
    timing = importlib.import_module("condistill.profiling.timing")
    timing.MIN_ROUNDS, timing.MAX_SECONDS = 1, 0.0
    gc.collect()
    gc.freeze()


class Server:
    """Forks processes, and says how they end."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"{address}.new")
        self._listener.listen(64)
        self._wake, sleeper = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(sleeper, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(sleeper, warn_on_full_buffer=False)
        self._leases: list[socket.socket] = []
        self._running: dict[int, socket.socket] = {}
        os.rename(f"{address}.new", address)  # noqa: PTH104 - the program must start without `pathlib`

    def serve(self) -> dict[str, Any] | None:
        """Fork until no test session is left.

        Returns:
            In a process that was forked, what it must run; in this process, at last, None.
        """
        import select

        while True:
            waiting = [self._listener, self._wake, *self._leases, *self._running.values()]
            ready, _, _ = select.select(waiting, [], [], 60.0)
            if self._listener in ready:
                request = self._accept(self._listener.accept()[0])
                if request is not None:
                    return request
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._report()
            for process, connection in list(self._running.items()):
                if connection in ready:  # the program is gone
                    os.kill(process, signal.SIGKILL)
                    self._running.pop(process).close()
            for lease in [lease for lease in self._leases if lease in ready]:
                self._leases.remove(lease)
            if not self._leases and not self._running:
                return None

    def _accept(self, connection: socket.socket) -> dict[str, Any] | None:
        head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(12))
        if head[:5] == b"lease":
            self._leases.append(connection)
            return None
        streams = array.array("i")
        streams.frombytes(ancillary[0][2])
        content = b""
        while len(content) < int.from_bytes(head, "big"):
            content += connection.recv(2**16)
        process = os.fork()
        if not process:
            self._close_all(connection)
            return {**json.loads(content), "streams": list(streams)}
        for stream in streams:
            os.close(stream)
        self._running[process] = connection
        connection.sendall(f"{process}\n".encode())
        return None

    def _close_all(self, connection: socket.socket) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (connection, self._listener, *self._leases, *self._running.values()):
            each.close()

    def _report(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            connection = self._running.pop(process, None)
            if connection is not None:
                connection.sendall(f"{status}\n".encode())
                connection.close()


def become(request: dict[str, Any]) -> list[str]:
    """Take over the streams, the environment and the directory of the program, and return its arguments."""
    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    for number in PASSED_ON:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    arguments: list[str] = request["arguments"]
    while arguments[0] == "-u":
        arguments = arguments[1:]
    for name, number, errors in (("stdin", 0, "strict"), ("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        stream = open(number, "r" if not number else "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        stream.reconfigure(line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)[::-1]:
        if place and place not in sys.path:
            sys.path.insert(0, place)
    return arguments


def execute(arguments: list[str]) -> None:
    """Run a module, code or a script as `python` does."""
    import runpy

    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = ""
        sys.modules.pop(arguments[1], None)  # it is run, not imported
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[0] = ""
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))  # noqa: PTH100, PTH120
        runpy.run_path(arguments[0], run_name="__main__")


def end(arguments: list[str]) -> NoReturn:
    """Run, and end as an interpreter does, but leave the memory to the system: to free it takes a second."""
    import atexit
    import threading
    import traceback

    code: Any = 0
    try:
        execute(arguments)
    except SystemExit as exited:
        code = exited.code
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


def main() -> None:
    import shutil

    address = sys.argv[2]
    if sys.argv[1] == "run":
        run(address, sys.argv[3:])
    preload()
    server = Server(address)
    request = server.serve()
    if request is None:
        shutil.rmtree(os.path.dirname(address), ignore_errors=True)  # noqa: PTH120
    else:
        end(become(request))


if __name__ == "__main__":
    main()
