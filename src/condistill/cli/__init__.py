"""The `condistill` command: parses the command line and calls the packages below."""

from condistill.cli.app import app
from condistill.cli.entry import main

__all__ = ["app", "main"]
