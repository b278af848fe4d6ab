"""What may be asked: the text pool and which of its prompts may be cached."""

from condistill.prompts.pool import PromptPool

__all__ = ["PromptPool"]
