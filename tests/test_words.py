"""Plain English: no word of the list is left in anything that a user or a reader sees."""

from tests.words import findings, in_python, in_text


def test_no_word_of_the_list_is_left():
    assert [f"{item.path}:{item.line}: {item.text!r} -> {item.instead}" for item in findings()] == []


def test_words_are_noticed_in_text_strings_comments_docstrings_and_names():
    text = "Fine.\nMend it,\nand pass\nover the rest: 3 bytes a row."
    assert sorted(item.line for item in in_text("a.md", 1, text)) == [2, 3, 4]
    source = 'def f(wanted):\n    """Say whether it is."""\n    # drawn anew\n    return f"stands in {wanted}"\n'
    assert sorted(item.line for item in in_python("a.py", source)) == [1, 1, 3, 3, 4]


def test_code_and_links_are_not_prose():
    assert not list(in_text("a.md", 1, "`spool.py` and https://example.org/figures"))
