"""Write small pools of the miniature's captions, for the ablation of the pool's size.

python benchmarks/pools.py runs/pools          # 400.txt, and 4000.txt with other captions
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from condistill.miniature.world import all_captions

SIZES = (400, 4000)


def write_pools(folder: Path) -> None:
    """Write one file per size. No caption is in both; all captions are equally likely."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = np.random.default_rng(0).permutation(all_captions())
    start = 0
    for size in SIZES:
        (folder / f"{size}.txt").write_text("\n".join(captions[start : start + size]) + "\n", encoding="utf-8")
        start += size


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_pools(Path(sys.argv[1]))
