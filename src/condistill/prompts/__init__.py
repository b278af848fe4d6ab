"""The text pool, and its split into seen and unseen prompts."""

from condistill.prompts.pool import PromptPool

__all__ = ["PromptPool"]
