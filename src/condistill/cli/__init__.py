"""The `condistill` command: parses and delegates."""

from condistill.cli.app import app
from condistill.cli.commands import main

__all__ = ["app", "main"]
