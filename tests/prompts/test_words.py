from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condistill.errors import CondistillError
from condistill.prompts.text import clean_prompt
from condistill.prompts.words import find_words, has_word


@pytest.mark.parametrize(
    "prompt", ["a star", "Stars over the sea", "a STAR, red", "star-shaped", "the star's light", "box\tand starES"]
)
def test_a_whole_word_matches_in_any_case_and_plural(prompt: str) -> None:
    assert has_word(prompt, ["star"])


@pytest.mark.parametrize("prompt", ["a starfish", "start", "mustard", "stare", "star1", "", "a ring"])
def test_a_part_of_a_word_does_not_match(prompt: str) -> None:
    assert not has_word(prompt, ["star"])


def test_phrases_match_with_any_white_space() -> None:
    assert has_word("two Polar  bears", ("cat", "polar bear"))
    assert not has_word("a polar dog and a bear", ("cat", "polar bear"))


def test_words_are_literal_and_unicode_letters_are_letters() -> None:
    assert has_word("written in c++ today", ["c++"])
    assert not has_word("written in cc", ["c++"])
    assert not has_word("überstar", ["star"])


def test_without_words_nothing_matches_and_an_empty_word_is_an_error() -> None:
    assert not has_word("a star", [])
    with pytest.raises(CondistillError, match="' ' is not a word"):
        has_word("a star", ["ring", " "])


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("雪地上的一颗红星", "星"),  # Chinese
        ("雪地上的一颗红星很亮", "红星"),
        ("赤い星が光る", "星"),  # Japanese
        ("ﾎｼのしずく", "ホシ"),
        ("ガラスの靴", "ガラス"),
        ("빨간 별이 빛난다", "별"),  # Korean: a particle is attached to the noun
        ("ดาวสีแดงบนหิมะ", "สีแดง"),  # Thai
        ("ดวงดาวสีแดง", "ดาว"),
        ("红star的图", "star"),  # a neighbour that is written without spaces extends no word
        ("白いTシャツ", "Tシャツ"),
        ("ｒｅｄ　ｓｔａｒ", "star"),  # full width
        ("a red star", "ｓｔａｒ"),
        ("a 𝐬𝐭𝐚𝐫", "star"),
        ("a CAFÉ", "café"),
        ("ein großer FUSS", "Fuß"),
        ("ein Fuß", "fuss"),
        ("İSTANBUL by night", "istanbul"),
        ("istanbul", "İstanbul"),
        ("ISPARTA", "ısparta"),
        ("ΘΆΛΑΣΣΑΣ", "θάλασσας"),  # final sigma
        ("a st\u00adar", "star"),  # soft hyphen
        ("a s\u200btar", "star"),
        ("red\u200bstar", "star"),
        ("a star\ufe0f", "star"),
        ("Star™ logo", "star"),
        ("a polar-bear", "polar bear"),
        ("a polar\u2011bear", "polar bear"),
        ("polar_bears", "polar bear"),
        ("a polar_bear", "bear"),  # an underscore separates words, as in the tags of image collections
        ("1girl, star_1", "star"),
        ("a dog🐶", "🐶"),  # a sign has no letters that could continue it
        ("only$5", "$5"),
        ("a T shirt", "t-shirt"),
        ("a t\u2013shirt", "T-shirt"),
        ("a witch\u2019s hat", "witch's hat"),
        ("l\u2019étoile", "étoile"),
        ("نَجْم أحمر", "نجم"),
        ("लाल तारा", "तारा"),
    ],
)
def test_a_held_out_word_is_found_however_it_is_written(prompt: str, word: str) -> None:
    for form in ("NFC", "NFD"):
        assert has_word(unicodedata.normalize(form, prompt), [word])
        assert has_word(prompt, ["nothing", unicodedata.normalize(form, word)])


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("überstar", "star"),
        ("a starfish in a café", "star"),
        ("cafés", "caf"),
        ("cafe\u0301s", "cafe"),  # a combining mark belongs to its letter
        ("लाल तारा", "तार"),
        ("красная звездапад", "звезда"),
        ("一只红色的狐狸", "星"),
        ("año", "ano"),
    ],
)
def test_a_part_of_a_word_does_not_match_in_scripts_with_spaces(prompt: str, word: str) -> None:
    for form in ("NFC", "NFD"):
        assert not has_word(unicodedata.normalize(form, prompt), [word])


@pytest.mark.parametrize("word", ["\u200b", "\ufeff \u00ad", "\u3000"])
def test_a_word_that_shows_nothing_is_an_error(word: str) -> None:
    for prompt in ("a star", "星"):
        with pytest.raises(CondistillError, match="is not a word; remove it"):
            has_word(prompt, [word])


@given(st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_a_word_is_found_in_every_form_of_itself(word: str) -> None:
    forms = (word, word.upper(), word.lower(), *(unicodedata.normalize(form, word) for form in ("NFC", "NFD", "NFKC")))
    for form in forms:
        try:
            assert has_word(f"a {form} b", [word])
        except CondistillError:
            assert not clean_prompt(word)[0] or not word.isprintable()


def test_the_words_that_a_prompt_contains_are_found_in_their_order() -> None:
    words = ("polar bear", "cat", "étoile", "bear")
    assert find_words("two Polar  bears and a CAT", words) == ["polar bear", "cat", "bear"]
    assert find_words("une e\u0301toile", words) == ["étoile"]
    assert find_words("a category", words) == find_words("a cat", ()) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["cat", "fox", "bear", "catfish", "a", "étoile"]), max_size=6))
def test_each_word_is_found_as_it_is_found_alone(parts: list[str]) -> None:
    words = [f"w{number}" for number in range(20)] + ["cat", "fox", "étoile"]
    prompt = " ".join(parts)
    assert find_words(prompt, words) == [word for word in words if has_word(prompt, [word])]
