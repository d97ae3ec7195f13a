"""Names of files made from prompts: readable in every language, and different for different prompts."""

import pytest

from dato.utils.names import file_name

LONG = "a very long prompt " * 6


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Red apple on a blue background", "red-apple-on-a-blue-background"),
        ("  red   apple ", "red-apple"),
        ("красное яблоко", "красное-яблоко"),
        ("一只猫", "一只猫"),
        ("सेब लाल", "सेब-लाल"),  # vowels are marks on letters
        ("café", "café"),
        ("cafe\u0301", "café"),
    ],
)
def test_words_are_the_name(text, name):
    assert file_name(text) == name


def test_prompts_that_words_do_not_tell_apart_have_names_of_their_own():
    prompts = [
        "a cat",
        "a cat!",
        "a-cat",
        "a cat, a dog",
        "a cat; a dog",
        "!",
        "?",
        "",
        LONG + "1",
        LONG + "2",
        "🐈",
        "🐕",
    ]
    names = [file_name(prompt) for prompt in prompts]
    assert len(set(names)) == len(prompts)
    assert names[1].startswith("a-cat-") and names[9].startswith("a-very-long-prompt-a-very-long-prompt-")


@pytest.mark.parametrize("text", [LONG, "猫" * 200, "𐐀" * 200, "../" * 50, "a/b\\c:d\0e\n", "\udc80x"])
def test_a_name_is_one_that_file_systems_take(text, tmp_path):
    name = file_name(text)
    assert len(name.encode()) <= 130 and "/" not in name and "\\" not in name and "\0" not in name
    (tmp_path / name).touch()
