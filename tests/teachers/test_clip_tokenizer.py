from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from condistill.teachers.clip_tokenizer import TOKENS, VOCABULARY_NAME, read_merges, vocabulary, write_vocabulary
from condistill.teachers.single_file import SHIPPED


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("clip")
    write_vocabulary(SHIPPED / "clip" / VOCABULARY_NAME, folder)
    return CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("Hello, World!", [3306, 267, 1002, 256]),
        ("", []),
    ],
)
def test_prompts_have_the_tokens_of_clip(prompt: str, tokens: list[int], tokenizer: CLIPTokenizer) -> None:
    assert tokenizer(prompt).input_ids == [49406, *tokens, 49407]


def test_the_vocabulary_has_every_token_once() -> None:
    numbers = vocabulary(read_merges(SHIPPED / "clip" / VOCABULARY_NAME))
    assert sorted(numbers.values()) == list(range(TOKENS))
    assert (numbers["!"], numbers["!</w>"], numbers["cat</w>"]) == (0, 256, 2368)
    assert (numbers["<|startoftext|>"], numbers["<|endoftext|>"]) == (49406, 49407)


def test_text_of_other_scripts_is_encoded_in_bytes(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.decode(tokenizer("你好 émigré 🚀").input_ids, skip_special_tokens=True) == "你好 émigré 🚀"
