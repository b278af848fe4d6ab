"""Work and decisions in a run of several processes: an error in one of them reaches all, and none waits for ever."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from condistill.errors import CondistillError

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""How long a process waits for another one. The main process builds the text pool and evaluates alone, for hours, and
the default of torch is 10 or 30 minutes. A process that has ended is noticed at once, by its launcher or connection."""

_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or sequence parallelism)",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism",
}
"""Variables that accelerate's launcher sets, and what they switch on."""
_SUPPORTED = ("NO", "MULTI_GPU", "MULTI_CPU")
_REMEDY = "start plain data parallelism: accelerate launch --multi_gpu --num_processes N, or torchrun"


class OtherProcessError(CondistillError):
    """The error of every process but the one that failed, which prints the reason."""


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what splits a model over processes: checkpoints and students would have the part of one process.

    Raises:
        CondistillError: names what the launcher switched on.
    """
    for variable, name in _UNSUPPORTED.items():
        if _is_on(environment, variable):
            raise CondistillError(f"the launcher asks for {name}, which is not supported yet ({variable}); {_REMEDY}")
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise CondistillError(
            f"the launcher sets gradient_accumulation_steps to {steps}, which would scale the losses; leave it out, "
            "and set distill.micro_batch_size"
        )


def start_processes() -> Any:
    """Return accelerate's `PartialState`, whose process group waits as long as the main process needs.

    Raises:
        CondistillError: the launcher asks for a kind of parallelism that is not supported.
    """
    from accelerate import PartialState

    check_launcher()
    state = PartialState(cpu=_is_on(os.environ, "ACCELERATE_USE_CPU"), timeout=LONGEST_WAIT)
    kind = str(getattr(state.distributed_type, "value", state.distributed_type))
    if kind not in _SUPPORTED:
        raise CondistillError(
            f"the launcher asks for {kind}, which is not supported yet; supported: {', '.join(_SUPPORTED)}; {_REMEDY}"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and state.num_processes == 1:
        raise CondistillError(
            f"the launcher started {started} processes, and there is no GPU for them; set the environment variable "
            "ACCELERATE_USE_CPU=true to use them on the CPU"
        )
    return state


def has_state() -> bool:
    """Return whether this process has begun accelerate's state, which fixes its precision."""
    from accelerate.state import AcceleratorState

    return bool(AcceleratorState._shared_state)


def reset_state() -> None:
    """Forget accelerate's state, so that the next run of this process may have another precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def from_main_process(accelerator: Any, work: Callable[[], T]) -> T:
    """Return the result of `work` on every process; only the main process calls it.

    Args:
        work: returns something small that pickle can hold.

    Raises:
        OtherProcessError: `work` failed; the main process raises the error itself.
    """
    from accelerate.utils import broadcast_object_list

    alone = accelerator.num_processes == 1
    outcome: list[Any] = [None, ""]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except BaseException as error:
            if not alone:
                broadcast_object_list([None, _text(error)])
            raise
    if not alone:
        broadcast_object_list(outcome)
        if outcome[1]:
            raise OtherProcessError(f"the main process failed: {outcome[1]}")
    result: T = outcome[0]
    return result


def decide(accelerator: Any, question: Callable[[], bool]) -> bool:
    """Return the main process's answer to a question on every process.

    Args:
        question: a function that only the main process calls, so that all processes act on the same answer.

    Raises:
        OtherProcessError: see `from_main_process`.
    """
    return bool(from_main_process(accelerator, question))


def on_main_process(accelerator: Any, work: Callable[[], object]) -> None:
    """Call `work` on the main process, and make every process wait until it is done.

    Raises:
        OtherProcessError: see `from_main_process`.
    """

    def work_alone() -> None:
        work()

    from_main_process(accelerator, work_alone)


def on_every_process(accelerator: Any, work: Callable[[], T]) -> T:
    """Return the result of `work`, which every process calls for itself, once all are done.

    Raises:
        OtherProcessError: `work` failed in another process. Where it failed in several, the first one raises its error.
    """
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import gather_object

    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as raised:  # an interrupt ends the process at once, and its launcher ends the others
        error = raised
    texts: list[str] = gather_object([_text(error) if error else ""])
    failed = next((number for number, text in enumerate(texts) if text), None)
    if failed is None:
        kept: T = result
        return kept
    if error and failed == accelerator.process_index:
        raise error
    raise OtherProcessError(f"process {failed} failed: {texts[failed]}") from error


def _is_on(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "false").lower() in ("1", "true", "yes", "on")


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
