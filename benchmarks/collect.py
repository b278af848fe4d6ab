"""Copy the table and the plot of a finished sweep to the benchmarks.

python benchmarks/collect.py runs/sweeps/states          # benchmarks/states.md and states.svg
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def collect(sweep: Path) -> None:
    """Copy the table and the plot of a sweep; both get the name of the sweep's directory."""
    text = (sweep / "sweep.md").read_text(encoding="utf-8")
    if " runs are done.**" in text:
        sys.exit(f"the sweep in {sweep} is not finished; run its command again")
    (HERE / f"{sweep.name}.md").write_text(text.replace("(sweep.svg)", f"({sweep.name}.svg)"), encoding="utf-8")
    shutil.copyfile(sweep / "sweep.svg", HERE / f"{sweep.name}.svg")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        collect(Path(argument))
