"""What `init` says about prompt files: the column, the first prompt, the number, and how many are too long."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from condistill.errors import CondistillError
from condistill.prompts.lengths import long_prompts
from condistill.prompts.pool import PoolCounts, PromptPool, count_prompts
from condistill.prompts.readers import check_column, describe_source, read_prompts
from condistill.teachers.family import Family

_MOST_COUNTED, _MOST_MEASURED = 1_000_000, 20_000


def count_and_describe(files: Sequence[str], column: str | None, say: Callable[[str], None]) -> PoolCounts:
    """Return the counts of all prompts, of a million at most; say the column and the first prompt of each file.

    Raises:
        CondistillError: a file cannot be read, or contains no prompts.
    """
    check_column(files, column)
    sources = [describe_source(file, column=column) for file in files]
    for source in sources:
        if not source.first_prompt:
            raise CondistillError(f"{source.path} contains no prompts; choose another file")
    counts = count_prompts(files, column=column, limit=_MOST_COUNTED)
    for source in sources:
        say(str(source))
    say(
        f"prompts: {counts.kept:,} of the {'first ' if counts.read == _MOST_COUNTED else ''}{counts.read:,} may be "
        f"cached ({counts.duplicates:,} duplicates and {counts.empty:,} empty ones dropped)"
    )
    return counts


def long_prompts_warning(files: Sequence[str], column: str | None, family: Family, location: Path | str) -> str | None:
    """Return a warning about the prompts that the teacher's text encoder does not read to their end, among the first.

    Args:
        family: the teacher on the meta device, whose tokenizers are stand-ins.
        location: of the teacher.

    Returns:
        None if there are none, or if the tokenizer is not in the teacher's directory.
    """
    reader = family.prompt_reader
    tokenizer = reader and _load_tokenizer(family, reader[0], location)
    if not reader or tokenizer is None:
        return None
    first = islice(chain.from_iterable(read_prompts(file, column=column) for file in files), _MOST_MEASURED)
    with tempfile.TemporaryDirectory() as folder:
        pool = PromptPool.from_prompts(first, Path(folder) / "pool.arrow")
        warning = long_prompts(pool, tokenizer, reader[1])
        del pool  # the file is mapped
    return warning


def _load_tokenizer(family: Family, stand_in: Any, location: Path | str) -> Any:
    """Return a tokenizer of a pipeline's directory; None if it is not there, or transformers cannot load it."""
    names = (name for name, component in family.pipeline.components.items() if component is stand_in)
    folder = Path(location) / next(names, "")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:  # a run reports it by its cause; here only a warning is missing
        return None
