"""What the page calls: requests that wait for the device, by the session of the user who sent them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from condistill.errors import CondistillError
from condistill.studio.cached import CachedImages
from condistill.studio.engine import Engine, ImageRequest, describe
from condistill.studio.line import Line, Ticket
from condistill.studio.live import LiveRun
from condistill.studio.loading import Models
from condistill.studio.markup import figure
from condistill.studio.sources import Sources
from condistill.utils.format import duration
from condistill.utils.progress import clock_text


class Desk:
    """The models, the caches and the runs of a studio, and the line of its requests."""

    def __init__(self, sources: Sources, device: torch.device, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Open the desk; nothing is loaded.

        Args:
            say: called with lines for the terminal.
        """
        self.sources, self.device = sources, device
        self.line = Line()
        self.caches = {str(run): CachedImages(run) for run in sources.runs}
        self.live = {str(run): LiveRun(run) for run in sources.runs}
        self._engine = Engine(Models(sources.models, device, say=say))
        self._say = say
        self._of_session: dict[str, list[Ticket]] = {}

    def generate(self, request: ImageRequest, session: str) -> Ticket:
        """Put a request into the line; its results are the HTML of every image, with the name of the model.

        Raises:
            CondistillError: the line is too long.
        """

        def work(ticket: Ticket) -> None:
            seconds = 0.0
            for result in self._engine.generate(request, ticket.watch):
                ticket.add((result.model, figure(result, request.prompt)))
                seconds += getattr(result, "seconds", 0.0)
            self._say(f"generated {describe(request)}: {duration(seconds)}")

        return self._submit(work, session)

    def browse(self, run: str, number: object, words: str, session: str) -> Ticket:
        """Put a page of a cache into the line; its result is the page and its HTML.

        Raises:
            CondistillError: the cache cannot be read, or the line is too long.
        """
        if run not in self.caches:
            raise CondistillError("this run is not in the studio; choose another one")
        cached = self.caches[run]
        models = self.sources.of_run(Path(run))
        if not models:
            raise CondistillError(f"no model of {run} can be loaded, so its latents cannot be decoded")
        page = cached.page(number, words)

        def work(ticket: Ticket) -> None:
            html = cached.html(page, lambda latents: self._engine.decode(models[0].name, latents), ticket.watch.check)
            ticket.add((page, html))

        return self._submit(work, session)

    def _submit(self, work: Callable[[Ticket], None], session: str) -> Ticket:
        ticket = self.line.submit(work)
        mine = [other for other in self._of_session.get(session, []) if not other.is_done]
        self._of_session[session] = [*mine, ticket]
        return ticket

    def finished(self, ticket: Ticket, session: str) -> None:
        """Forget a request, which is stopped if it has not ended."""
        if not ticket.is_done:
            ticket.cancel()
        left = [other for other in self._of_session.get(session, []) if other is not ticket]
        if left:
            self._of_session[session] = left
        else:
            self._of_session.pop(session, None)

    def stop(self, session: str) -> int:
        """Stop the requests of a user, and return how many there were."""
        tickets = [ticket for ticket in self._of_session.get(session, []) if not ticket.is_done]
        for ticket in tickets:
            ticket.cancel()
        return len(tickets)

    def close(self) -> None:
        """Stop every request."""
        self.line.close()


def waiting_text(ahead: int, total: int) -> str:
    """Return how long the line is, for a request that waits."""
    return f"Waiting: {ahead} request{'s' * (ahead != 1)} before yours, {total} in all."


def working_texts(ticket: Ticket, models: int) -> Iterator[str]:
    """Yield what a running request does, and then how far it is."""
    name, done, total = ticket.step
    number = min(len(ticket.results) + 1, models)
    yield f"Generating with {name} ({number} of {models})." if name else "Loading the models."
    yield f"Step {done + 1} of {total}." if name else ""


def ending_text(ticket: Ticket, seconds: float, request: ImageRequest | None = None) -> str:
    """Return how a request ended.

    Args:
        request: whose images are shown from now on; None: it has decoded latents.
    """
    if ticket.error:
        return ticket.error
    if ticket.is_cancelled:
        return f"Stopped; {len(ticket.results)} image(s) were finished."
    shown = "" if request is None else f": {request.prompt}, seed {request.seed}"
    return f"Finished after {clock_text(seconds) if seconds >= 60 else duration(seconds)}{shown}"
