"""The entry point: runs a command and turns exceptions into error lines and exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import cast

import typer

import condistill.cli.evaluate
import condistill.cli.export
import condistill.cli.finished
import condistill.cli.push
import condistill.cli.recipes
import condistill.cli.stages
import condistill.cli.studio  # noqa: F401 - these modules register the commands
from condistill.cli.app import Interrupted, app, console, say
from condistill.cli.texts import error_message, usage_message
from condistill.utils.distributed import OtherProcessError
from condistill.utils.malloc import keep_freed_memory
from condistill.utils.quiet import quiet_environment
from condistill.utils.signals import Stopped, stop_at_once
from condistill.utils.terminal import print_line
from condistill.utils.text import printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BROKEN_PIPE = 141

LOST_PROCESS = "another process of this run has ended; start the run again once its error is repaired"

_UsageError = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""The class in click, or in the copy of click that typer contains."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a `condistill` command and exit: with code 0 on success, else with an error message of one line.

    Args:
        arguments: the command line without the program name. Default: `sys.argv[1:]`.
    """
    arguments, debug = _split_debug(list(sys.argv[1:] if arguments is None else arguments))
    _make_output_safe()
    _check_encoding(arguments)
    quiet_environment()
    keep_freed_memory()
    try:
        with stop_at_once(), warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            sys.exit(app(arguments, prog_name="condistill", standalone_mode=False))
    except (Interrupted, KeyboardInterrupt, typer.Abort) as error:
        cause = error if isinstance(error, Stopped) else error.__cause__
        stopped = cause if isinstance(cause, Stopped) else Stopped(signal.SIGINT)
        if os.environ.get("RANK", "0") == "0":  # every process of a launcher gets the signal
            say(str(stopped))
        sys.exit(stopped.exit_code)
    except OtherProcessError:  # that process prints the reason
        sys.exit(EXIT_FAILED)
    except _UsageError as error:
        code: int = getattr(error, "exit_code", 2)
        if type(error).__name__ == "NoArgsIsHelpError":  # typer has printed the help already
            sys.exit(code)
        _fail(usage_message(error), code)
    except BrokenPipeError:  # the program that reads the output has ended, such as `head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - Python flushes it at exit
        sys.exit(EXIT_BROKEN_PIPE)
    except Exception as error:
        if debug:
            sys.excepthook = _show_traceback
            raise
        _fail(LOST_PROCESS if _has_lost_a_process(error) else error_message(error), EXIT_FAILED)


def _split_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--debug`, and whether it was one of them; arguments after `--` are kept."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*options, *arguments[end:]], len(options) < end


def _make_output_safe() -> None:
    """Let characters that the output's encoding does not have be printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_encoding(arguments: Sequence[str]) -> None:
    """Exit with an error for an argument that is not UTF-8: a recipe and a report cannot contain such a name."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            _fail(f"the argument {argument} is not UTF-8; rename the file or correct the argument", EXIT_USAGE)


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback in which control characters are visible."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def _has_lost_a_process(error: BaseException) -> bool:
    """Return whether an exception says that the connection to another process of the run broke."""
    lost = "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error)
    return lost and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _fail(message: str, code: int) -> None:
    """Print an error message and exit; of several processes, all but the main one say which they are."""
    rank = os.environ.get("RANK", "0")
    print_line(console, "error: ", style="red", end="")
    say(message if rank == "0" else f"process {rank}: {message}")
    sys.exit(code)
