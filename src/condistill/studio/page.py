"""The page: its controls, and what happens when one is used."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import gradio as gr

from condistill.errors import CondistillError
from condistill.studio.desk import Desk, ending_text, waiting_text, working_texts
from condistill.studio.engine import ImageRequest, check_request
from condistill.studio.line import Ticket
from condistill.studio.live import LiveView
from condistill.studio.markup import empty_figure, status
from condistill.studio.sources import ModelSource

POLL_SEC = 0.1
FOLLOW_EVERY_SEC = 2.0
_USUAL_STEPS, _USUAL_GUIDANCE = 25, 5.0
_READ_OUT = "element.setAttribute('aria-live', 'polite'); element.setAttribute('role', 'status')"
_KEPT_SESSIONS = 64
"""gradio keeps what every session was shown last, images included; a session that is forgotten loses nothing else."""
_SHOW_LINE_SEC = 0.02
"""How much longer a request waits, for each one before it, until it looks again at the line."""
_FREE: Any = {"concurrency_limit": None, "show_progress": "hidden"}
"""The line of the desk is the only one: gradio runs every event at once, and shows no cover over the outputs."""

_AT_ONCE: Any = {"queue": False, "show_progress": "hidden"}
"""For what is answered at once, in the response itself. gradio's page can miss what comes over the stream of its queue:
it closes the stream after an event, and one that begins just then would wait for ever."""
_PRIVATE: Any = {"api_visibility": "private"}


def _unchecked(control: Any) -> Any:
    """Return a control whose value is checked with the rest of the request, so that all mistakes have our messages.

    A subclass would do the same, and gradio would take it for a component with a front end of its own.
    """
    control.preprocess = lambda payload: payload
    return control


def build_page(desk: Desk) -> gr.Blocks:
    """Return the page of a desk."""
    page: gr.Blocks
    with gr.Blocks(title="condistill studio", analytics_enabled=False, fill_width=True) as page:
        gr.HTML("<h1>condistill studio</h1>")
        with gr.Tabs():
            with gr.Tab("Generate") as generate_tab:
                _generate_tab(desk)
            if desk.sources.runs:
                with gr.Tab("Cache") as cache_tab:
                    _cache_tab(desk, cache_tab)
                with gr.Tab("Follow") as follow_tab:
                    _follow_tab(desk, follow_tab, [generate_tab, cache_tab])
    page.queue(default_concurrency_limit=None, api_open=False)
    page.state_session_capacity = _KEPT_SESSIONS
    return page


def _generate_tab(desk: Desk) -> None:
    models = desk.sources.models
    if not models:
        gr.HTML(status("No finished model was found; the tab Follow shows what the run does."))
        return
    controls = Controls(models)
    line = gr.HTML(
        status("Write a prompt and press Generate. All models start from the same noise."),
        elem_id="cs-status",
        js_on_load=_READ_OUT,
    )
    with gr.Row(elem_classes="cs-images"):
        figures = [gr.HTML(empty_figure(model.name), min_width=120) for model in models]

    async def generate(values: dict[Any, Any], request: gr.Request) -> AsyncIterator[list[Any]]:
        session = str(request.session_hash)
        try:
            wanted = controls.request(values)
            ticket = desk.generate(wanted, session)
        except CondistillError as error:
            yield [status(str(error), is_error=True), *(gr.skip() for _ in figures)]
            return
        shown: dict[str, str] = {}
        try:
            async for text in _follow(desk, ticket, wanted):
                now = {name: empty_figure(name, "") for name in wanted.models} | dict(ticket.results)
                if ticket.is_done:
                    shown = {}  # a program that uses the page gets the last values only
                yield [text, *(now[m.name] if now.get(m.name) != shown.get(m.name) else gr.skip() for m in models)]
                shown = now
        finally:
            desk.finished(ticket, session)

    def stop_mine(request: gr.Request) -> None:
        desk.stop(str(request.session_hash))

    outputs: Any = [line, *figures]
    pressed: Any = [controls.start.click, controls.prompt.submit]
    gr.on(pressed, generate, controls.inputs, outputs, api_name="generate", **_FREE)
    controls.stop.click(stop_mine, api_name="stop", **_AT_ONCE)


class Controls:
    """The controls of the tab Generate."""

    def __init__(self, models: Sequence[ModelSource]) -> None:
        """Add the controls to the page, with the steps and the guidance scale of the first model that has some."""
        self.names = [model.name for model in models]
        known = next((model for model in models if model.steps), models[0])
        steps = known.steps or _USUAL_STEPS
        guidance = _USUAL_GUIDANCE if known.guidance is None else known.guidance
        with gr.Row(elem_classes="cs-bar"):
            self.prompt = gr.Textbox(
                label="Prompt", placeholder="What the image shows", max_lines=6, scale=6, autofocus=True
            )
            self.start = gr.Button("Generate", variant="primary", scale=1, min_width=120)
            self.stop = gr.Button("Stop", scale=1, min_width=90)
        with gr.Row(elem_classes="cs-bar"):
            self.steps = _unchecked(gr.Slider(1, max(100, 2 * steps), value=steps, step=1, label="Steps", scale=3))
            self.guidance = _unchecked(
                gr.Slider(0, max(20, 2 * guidance), value=guidance, step=0.1, label="Guidance", scale=3)
            )
            self.seed = _unchecked(gr.Number(value=0, precision=0, label="Seed", scale=2, min_width=120))
            renew = gr.Button("New seed", scale=1, min_width=90)
        with gr.Row(elem_classes="cs-bar", equal_height=False):
            self.models = _unchecked(
                gr.CheckboxGroup(self.names, value=self.names, label="Models", min_width=240, scale=4)
            )
            self.own = gr.Checkbox(
                value=True, label="Each model with its own steps and guidance", min_width=240, scale=3
            )
        self.inputs: Any = {self.prompt, self.models, self.own, self.steps, self.guidance, self.seed}
        renew.click(None, None, self.seed, js="() => Math.floor(Math.random() * 2 ** 31)", **_PRIVATE)
        for control in (self.steps, self.guidance):
            control.input(None, None, self.own, js="() => false", **_PRIVATE)

    def request(self, values: Mapping[Any, Any]) -> ImageRequest:
        """Return the request for the values of the controls.

        Raises:
            CondistillError: one cannot be used.
        """
        own = bool(values[self.own])
        wanted = check_request(
            values[self.prompt],
            values[self.models],
            seed=values[self.seed],
            steps=None if own else _given(values[self.steps]),
            guidance=None if own else _given(values[self.guidance]),
        )
        for name in wanted.models:
            if name not in self.names:
                raise CondistillError(f"there is no model {name!r}; the models are {', '.join(self.names)}")
        return wanted


def _given(value: object) -> object:
    """Return the value of a control that must have one: empty text for none."""
    return "" if value is None else value


async def _follow(desk: Desk, ticket: Ticket, request: ImageRequest | None = None) -> AsyncIterator[str]:
    """Yield the status of a request as HTML whenever it changes, and at last how it ended.

    Args:
        request: None: it decodes latents.
    """
    before, started = "", time.monotonic()
    while not ticket.is_done:
        if ticket.is_cancelled:
            now = status("Stopping.")
        elif not ticket.is_running:
            now = status(waiting_text(desk.line.ahead(ticket), len(desk.line)))
        elif request is not None:
            text, note = working_texts(ticket, len(request.models))
            behind = len(desk.line) - 1
            note += f" {behind} request(s) wait." if behind > 0 else ""
            now = status(text, progress=ticket.step[1:] if note else None, note=note)
        else:
            now = status("Decoding latents.")
        if now != before:
            before = now
            yield now
        await asyncio.sleep(POLL_SEC + _SHOW_LINE_SEC * desk.line.ahead(ticket))
    yield status(ending_text(ticket, time.monotonic() - started, request), is_error=bool(ticket.error))


def _run_choice(runs: list[str]) -> gr.Dropdown:
    choice: gr.Dropdown = _unchecked(gr.Dropdown(runs, value=runs[0], label="Run", visible=len(runs) > 1))
    return choice


def _cache_tab(desk: Desk, tab: gr.Tab) -> None:
    runs = list(desk.caches)
    with gr.Row(elem_classes="cs-bar"):
        run = _run_choice(runs)
        words = gr.Textbox(label="Only prompts that contain", placeholder="all prompts", max_lines=1, scale=3)
        number = _unchecked(gr.Number(value=1, precision=0, label="Page", scale=1, min_width=90))
        back = gr.Button("Previous page", scale=1, min_width=120)
        forth = gr.Button("Next page", scale=1, min_width=120)
    line = gr.HTML(elem_id="cs-cache-status", js_on_load=_READ_OUT)
    images = gr.HTML()

    async def browse(run: Any, number: Any, words: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
        session = str(request.session_hash)
        try:
            ticket = desk.browse(str(run), number, str(words or ""), session)
        except CondistillError as error:
            yield [gr.skip(), status(str(error), is_error=True), gr.skip()]
            return
        try:
            async for text in _follow(desk, ticket):
                if not ticket.is_done:
                    yield [gr.skip(), text, gr.skip()]
            if not ticket.results:
                yield [gr.skip(), text, gr.skip()]
                return
            page, html = ticket.results[0]
            found = f"{page.total:,} image{'s' * (page.total != 1)}, page {page.number:,} of {page.pages:,}"
            yield [page.number, status(found), html]
        finally:
            desk.finished(ticket, session)

    async def turn(by: int, run: Any, number: Any, words: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for each in browse(run, (number if isinstance(number, int | float) else 1) + by, words, request):
            yield each

    async def next_page(run: Any, number: Any, words: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for each in turn(1, run, number, words, request):
            yield each

    async def previous_page(run: Any, number: Any, words: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for each in turn(-1, run, number, words, request):
            yield each

    inputs: Any = [run, number, words]
    outputs: Any = [number, line, images]
    gr.on([tab.select, number.submit, words.submit, run.input], browse, inputs, outputs, api_name="cache", **_FREE)
    forth.click(next_page, inputs, outputs, **_FREE, **_PRIVATE)
    back.click(previous_page, inputs, outputs, **_FREE, **_PRIVATE)


def _follow_tab(desk: Desk, tab: gr.Tab, others: Sequence[gr.Tab]) -> None:
    runs = list(desk.live)
    run = _run_choice(runs)
    pieces = [gr.HTML() for _ in LiveView._fields]
    shown = gr.State(())
    timer = gr.Timer(FOLLOW_EVERY_SEC, active=False)

    def follow(run: Any, shown: Any) -> list[Any]:
        if isinstance(run, str) and run in desk.live:
            view = desk.live[run].html()
        else:
            view = LiveView(status("this run is not in the studio; choose another one", is_error=True))
        digests = tuple(hashlib.sha256(piece.encode()).hexdigest() for piece in view)
        before = shown if isinstance(shown, tuple) and len(shown) == len(view) else ("",) * len(view)
        new = [gr.skip() if now == old else piece for piece, now, old in zip(view, digests, before, strict=True)]
        return [*new, digests]

    inputs: Any = [run, shown]
    outputs: Any = [*pieces, shown]
    gr.on([tab.select, timer.tick, run.input], follow, inputs, outputs, api_name="follow", **_AT_ONCE)
    tab.select(lambda: gr.Timer(active=True), None, timer, **_AT_ONCE, **_PRIVATE)
    for other in others:
        other.select(lambda: gr.Timer(active=False), None, timer, **_AT_ONCE, **_PRIVATE)
