from __future__ import annotations

import errno
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condistill.errors import CondistillError, CorruptError
from condistill.prompts import PromptPool, pool
from condistill.prompts.pool import PoolCounts, count_prompts
from condistill.prompts.text import clean_prompt
from condistill.utils.atomic import partial_path


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BATCH_ROWS", 4)


def test_a_pool_is_built_from_files_without_empty_prompts_and_duplicates(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("  a cat \n\na dog\na cat\n \t\n")
    (tmp_path / "b.csv").write_text("prompt,n\na dog,1\na fox,2\n")
    prompt_pool = PromptPool.build([tmp_path / "a.txt", str(tmp_path / "b.csv")], tmp_path / "p.arrow", column="prompt")
    assert list(prompt_pool) == ["a cat", "a dog", "a fox"]
    assert prompt_pool.counts == PoolCounts(read=7, kept=3, empty=2, duplicates=2)
    assert prompt_pool.sources == ("a.txt", "b.csv")
    assert str(tmp_path).encode() not in prompt_pool.path.read_bytes()


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 9])
def test_a_pool_is_a_sequence(tmp_path: Path, n: int) -> None:
    prompts = [f"prompt {i}" for i in range(n)]
    prompt_pool = PromptPool.from_prompts(iter(prompts), tmp_path / "p.arrow")
    assert len(prompt_pool) == n
    assert [prompt_pool[i] for i in range(-n, n)] == prompts + prompts
    assert prompt_pool.take(np.arange(n)[::-1]) == prompts[::-1]
    assert list(prompt_pool) == prompts
    for index in (n, -n - 1):
        with pytest.raises(IndexError, match=f"prompt {index} is not in a pool of {n} prompts"):
            prompt_pool[index]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=20))
@settings(max_examples=25, deadline=None)
def test_a_pool_contains_each_stripped_prompt_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    out = tmp_path_factory.mktemp("pool") / "p.arrow"
    expected = list(dict.fromkeys(filter(None, (clean_prompt(prompt)[0] for prompt in prompts))))
    if not expected:
        with pytest.raises(CondistillError, match="no prompts"):
            PromptPool.from_prompts(prompts, out)
        return
    prompt_pool = PromptPool.from_prompts(prompts, out)
    assert list(prompt_pool) == expected
    counts = prompt_pool.counts
    assert counts.read == len(prompts) == counts.kept + counts.empty + counts.duplicates


def test_the_content_hash_depends_only_on_the_prompts_and_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PromptPool.from_prompts(["a", "bc", "d"], tmp_path / "1.arrow").content_hash
    digest = hashlib.sha256()
    for text in (b"a", b"bc", b"d"):
        digest.update(len(text).to_bytes(8, "little") + text)
    assert first == digest.hexdigest()
    monkeypatch.setattr(pool, "BATCH_ROWS", 2)
    assert PromptPool.from_prompts([" a", "", "bc", "a", "d"], tmp_path / "2.arrow").content_hash == first
    assert PromptPool.from_prompts(["bc", "a", "d"], tmp_path / "3.arrow").content_hash != first
    assert PromptPool.from_prompts(["ab", "c", "d"], tmp_path / "4.arrow").content_hash != first


def test_random_prompts_are_uniform_with_replacement_and_depend_on_the_generator(tmp_path: Path) -> None:
    prompt_pool = PromptPool.from_prompts(["a", "b", "c"], tmp_path / "p.arrow")
    prompts = prompt_pool.draw(3000, np.random.Generator(np.random.Philox(7)))
    assert prompts == prompt_pool.draw(3000, np.random.Generator(np.random.Philox(7)))
    assert all(900 < prompts.count(prompt) < 1100 for prompt in "abc")


def test_opening_a_pool_reads_no_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BATCH_ROWS", 1000)
    prompt_pool = PromptPool.from_prompts((f"prompt {i}" * 50 for i in range(5000)), tmp_path / "p.arrow")
    del prompt_pool
    before = pa.total_allocated_bytes()
    again = PromptPool.open(tmp_path / "p.arrow")
    assert len(again) == 5000
    assert again[4321] == "prompt 4321" * 50
    assert pa.total_allocated_bytes() - before < 50_000


def test_any_arrow_reader_can_read_the_pool(tmp_path: Path) -> None:
    PromptPool.from_prompts(["a", "b"], tmp_path / "p.arrow")
    table = pa.ipc.open_file(str(tmp_path / "p.arrow")).read_all()
    assert table.to_pydict() == {"prompt": ["a", "b"]}
    assert table.schema.field("prompt").type == pa.large_string()


def test_a_pool_is_pickled_as_its_path(tmp_path: Path) -> None:
    prompt_pool = PromptPool.from_prompts([f"prompt {i}" for i in range(2000)], tmp_path / "p.arrow")
    pickled = pickle.dumps(prompt_pool)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[1999] == "prompt 1999"


def test_a_column_that_applies_to_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    with pytest.raises(CondistillError, match=r"column 'text' applies to none of a.txt, miniature.*leave the column"):
        PromptPool.build([tmp_path / "a.txt", "miniature"], tmp_path / "p.arrow", column="text")


def test_a_pool_without_prompts_is_not_written_and_the_error_names_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(CondistillError, match=r"no prompts in a.txt \(2 empty ones\)"):
        PromptPool.build([tmp_path / "a.txt"], tmp_path / "p.arrow")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_mistake_in_the_last_file_is_reported_before_the_first_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n")
    (tmp_path / "b.csv").write_text("p,q\n1,2\n")
    monkeypatch.setattr(pool, "_write", lambda *_: pytest.fail("a file was converted"))
    with pytest.raises(CondistillError, match=r"b.csv has no column 'prompt'"):
        PromptPool.build([tmp_path / "a.txt", tmp_path / "b.csv"], tmp_path / "p.arrow", column="prompt")


@pytest.mark.parametrize("prompt", ["\ud800", 3, None])
def test_a_prompt_that_is_not_text_is_an_error(tmp_path: Path, prompt: object) -> None:
    with pytest.raises(CondistillError, match="is not valid UTF-8 text"):
        PromptPool.from_prompts(["a", prompt], tmp_path / "p.arrow")  # type: ignore[list-item]


def test_a_prompt_that_is_not_text_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800 star"}\n', encoding="utf-8")
    with pytest.raises(CondistillError, match=r"a prompt of a.jsonl is not valid UTF-8 text: '\\ud800 star'"):
        PromptPool.build([tmp_path / "a.jsonl"], tmp_path / "p.arrow")


def test_a_text_that_is_too_long_to_be_a_prompt_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a star\n" + "ä" * 100_001, encoding="utf-8")
    with pytest.raises(
        CondistillError, match=r"a prompt of a.txt has 100,001 characters.*one prompt on each line"
    ) as e:
        PromptPool.build([tmp_path / "a.txt"], tmp_path / "p.arrow")
    assert len(str(e.value)) < 400


def test_control_characters_are_removed_and_counted_and_invisible_prompts_are_empty(tmp_path: Path) -> None:
    prompts = ["a\x1b[1m star", "\ufeffa moon", "a\x0bcross", "Ta\x92c", "two\nlines", "👩\u200d🚀", "a star"]
    invisible = [
        "\u200b",
        "\u00a0",
        "\u3000",
        "\ufeff",
        "\u2800",
        "\u3164",
        "\x00\x07",
        "\u202e\u200f",
        "\ufe0f",
        "\x85",
    ]
    prompt_pool = PromptPool.from_prompts([*prompts, *invisible, "a star\x7f"], tmp_path / "p.arrow")
    assert list(prompt_pool) == ["a[1m star", "a moon", "a cross", "Tac", "two\nlines", "👩\u200d🚀", "a star"]
    assert prompt_pool.counts == PoolCounts(read=18, kept=7, empty=10, duplicates=1, cleaned=5)


def test_prompts_can_be_counted_without_a_pool(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,prompt\n1,a\n2,b\n3,a\n4, \n")
    (tmp_path / "b.csv").write_text("prompt\nb\nc\n")
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert count_prompts(files, column="prompt") == PoolCounts(read=6, kept=3, empty=1, duplicates=2)
    assert count_prompts(files, column="prompt", limit=3).kept == 2


def test_a_failed_build_keeps_the_old_pool(tmp_path: Path) -> None:
    out = tmp_path / "p.arrow"
    old = PromptPool.from_prompts(["old"], out)

    def full_disk():  # type: ignore[no-untyped-def]
        yield "new"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        PromptPool.from_prompts(full_disk(), out)
    assert list(PromptPool.open(out)) == list(old) == ["old"]
    assert not partial_path(out).exists()


def test_files_that_are_not_a_complete_pool_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match="there is no prompt pool"):
        PromptPool.open(tmp_path / "none.arrow")
    content = PromptPool.from_prompts(["a", "b"], tmp_path / "p.arrow").path.read_bytes()
    other = tmp_path / "other.arrow"
    with pa.OSFile(str(other), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("prompt", pa.large_string())])):
        pass
    invalid = (b"", b"hello", content[:-5], content[: len(content) // 2], other.read_bytes())
    for invalid_content in invalid:
        other.write_bytes(invalid_content)
        with pytest.raises(CorruptError, match=r"other.arrow is not a complete prompt pool .*rebuild it"):
            PromptPool.open(other)
    with pytest.raises(CorruptError):
        PromptPool.open(tmp_path)


def build(folder: Path, **files: str) -> PromptPool:
    paths = [folder / f"{name}.txt" for name in files]
    for path, lines in zip(paths, files.values(), strict=True):
        path.write_text("\n".join(lines) + "\n")
    return PromptPool.build(paths, folder / "pool.arrow")


@pytest.mark.usefixtures("small_batches")
def test_a_source_contains_the_prompts_that_no_earlier_file_contains(tmp_path: Path) -> None:
    prompt_pool = build(tmp_path, a="pqrpst", b="tuv", c="wpx")
    ranges = prompt_pool.source_ranges()
    assert {name: prompt_pool.take(np.array(indices)) for name, indices in ranges.items()} == {
        "a.txt": list("pqrst"),
        "b.txt": list("uv"),
        "c.txt": list("wx"),
    }


def test_a_file_given_twice_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p\nq\n")
    (tmp_path / "b.txt").write_text("r\n")
    files = [tmp_path / name for name in ("a.txt", "b.txt", "a.txt")]
    assert PromptPool.build(files, tmp_path / "pool.arrow").source_ranges() == {"a.txt": range(2), "b.txt": range(2, 3)}


def test_a_source_without_a_prompt_of_its_own_is_an_empty_range(tmp_path: Path) -> None:
    prompt_pool = build(tmp_path, a="pq", b="q", c="r")
    assert [len(indices) for indices in prompt_pool.source_ranges().values()] == [2, 0, 1]


def test_two_sources_with_the_same_name_are_refused(tmp_path: Path) -> None:
    build(tmp_path, a="pq")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("z\n")
    same = PromptPool.build([tmp_path / "a.txt", tmp_path / "other" / "a.txt"], tmp_path / "same.arrow")
    with pytest.raises(CondistillError, match=r"two files of the prompt pool are named 'a.txt'; rename one"):
        same.source_ranges()


def test_a_pool_of_an_older_version_can_be_read_and_must_be_rebuilt_to_use_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps = pool.json.dumps
    monkeypatch.setattr(pool.json, "dumps", lambda data: dumps({k: v for k, v in data.items() if k != "kept_of"}))
    old = build(tmp_path, a="pq")
    assert list(old) == ["p", "q"]
    with pytest.raises(CondistillError, match=r"pool.arrow was built by an older version.*to rebuild it"):
        old.source_ranges()
