"""Run a studio until it is ended: find its models, serve its page, and end both cleanly."""

from __future__ import annotations

import importlib.util
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from condistill.errors import CondistillError
from condistill.studio.server import check_access, open_socket, quiet_gradio


@dataclass(frozen=True)
class StudioOptions:
    """Where a studio is served, to whom, and on which device it computes."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: the first free one from 7860."""
    password: str | None = field(default=None, repr=False)
    device: str | None = None
    """`cpu` or `cuda`; None: a GPU where there is one."""
    browser: bool = False
    """Whether to open the page in the browser."""


def run_studio(sources: Sequence[str], options: StudioOptions, *, say: Callable[[str], None]) -> None:
    """Serve the page of runs and pipelines until Ctrl-C.

    Args:
        say: called with lines for the terminal.

    Raises:
        CondistillError: gradio is missing, the address needs a password, or a run or a pipeline cannot be used.
    """
    if importlib.util.find_spec("gradio") is None:
        raise CondistillError('the studio needs gradio: pip install "condistill[studio]"')
    check_access(options.host, options.password)
    quiet_gradio()
    from condistill.studio.sources import find_sources

    found = find_sources(sources)
    for note in found.notes:
        say(f"note: {note}")
    import torch

    from condistill.studio.desk import Desk
    from condistill.studio.page import build_page
    from condistill.studio.server import Server, build_app
    from condistill.utils.hardware import default_device

    if options.device == "cuda" and not torch.cuda.is_available():
        raise CondistillError("--device cuda: this machine has no GPU that torch can use; see `condistill doctor`")
    device = torch.device(options.device) if options.device else default_device()
    listening = open_socket(options.host, options.port)
    desk = Desk(found, device, say=say)
    server = Server(build_app(build_page(desk), host=options.host, password=options.password), listening)
    name = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{name}:{listening.getsockname()[1]}"
    try:
        server.start()
        models = ", ".join(model.name for model in found.models) or "no finished model"
        say(f"studio: {address} on {device.type}, with {models}")
        say("press Ctrl-C to end it")
        if options.browser:
            webbrowser.open(address)
        server.wait()
    except KeyboardInterrupt:
        say("the studio has ended")
    finally:
        server.stop()
        desk.close()
