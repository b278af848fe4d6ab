"""What a recipe will make and what that costs, without weights: `condistill plan` and `--dry-run`."""

from condistill.plan.make import make_plan
from condistill.plan.show import show_plan

__all__ = ["make_plan", "show_plan"]
