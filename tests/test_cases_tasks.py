"""Files of tasks that users brought: read right, or one line says what to type (shared cases own, ner, squad)."""

import re
from typing import Any

import pytest
from cases import folder_of_cases, outcome, task

from bert_jax.config.task_options import NerOptions, OwnOptions

SPAN = {"kind": "span", "text": "question", "text_pair": "context", "label": "answer"}
TAGS = {"kind": "tags", "text": "words", "label": "tags"}
CHOICE = {"kind": "choice", "choices": "choices"}
MILL = '"context": "Mira Kettle opened the mill in 1902 near Dale. The mill closed in 1950."'
TEXTS = r"train 24, dev 24\n"
ROWS = r"train 12, dev 12\nlabels 0, 1\n"
NAMES = r"--config\.own\.text=NAME --config\.own\.label=NAME$"
EXAMPLE = r'{"text": ".*", "text_pair": null, "label": %s}$'

# Folder, the options of custom data, and a pattern of what is read or of the whole error.
OWN: dict[str, tuple[dict[str, Any], str]] = {
    "bool_labels": ({}, TEXTS + "labels False, True"),
    "choice_letters": (CHOICE, r"error: .*line 1: unknown label 'A': write the index of the correct choice, 0 to 3$"),
    "choice_one_based": (CHOICE, r"error: .*line 4: unknown label '4': write the index .*, 0 to 3$"),
    "choice_text_label": (CHOICE, r"error: .*line 1: unknown label 'one': write the index .*, 0 to 1$"),
    "choice_varied": (CHOICE, r'train 8, dev 8\n.*"endings": \["a", "b", "c"\], "label": 0'),
    "csv": ({}, ROWS + r'.*\\"really\\"\\nsecond line\\twith tab"'),
    "dev_new_label": ({}, r"error: .*dev.jsonl line 3: unknown label 'c': the labels are a, b$"),
    "empty_text": ({}, TEXTS + "labels 0, 1"),
    "float_labels": ({}, TEXTS + r"labels 0\.0, 1\.0, 2\.0\n"),
    "int12": ({}, TEXTS + "labels 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"),
    "json_array": ({}, ROWS),
    "json_ext": ({}, ROWS),
    "jsonl_pretty": ({}, r"error: .*train.jsonl line 1: not JSON .*: write one JSON object per line, {\.\.\.}$"),
    "jsonl_utf16": ({}, r"error: .*train.jsonl line 1: not UTF-8 text: convert the file to UTF-8$"),
    "labels_1_to_5": ({}, TEXTS + "labels 1, 2, 3, 4, 5\n"),
    "long_text": ({}, r"24 of 24 texts of train \(100\.0 %\) are longer than 64 tokens.*head_tail or windows"),
    "multi_list": ({"kind": "multilabel"}, TEXTS + "labels insult, threat, toxic\n.*8 texts without a label"),
    "nan_text": ({}, r"error: .*line 1: column 'text' holds NaN, expected a text: fix the record$"),
    "null_label": ({}, r"error: .*line 4: column 'label' holds null, expected a text: fix the record$"),
    "one_class": ({}, r"error: the only label .* is 'x': there is nothing to learn; .*--config\.own\.label, "),
    "regression_comma": ({"kind": "regression"}, r"error: .*line 1: '0,5' is not a number: fix column label$"),
    "space_labels": ({}, TEXTS + "labels neg, pos\n"),
    "spans_dict": (
        TAGS,
        r"train 8, dev 8\nlabels O, B-PER, I-PER\n.*\"words\": \[\"Mira\", \"Kettle\", \"opened\", \"it\"\]",
    ),
    "squad_answer_space": (SPAN, r'{"text": " 1902 ", "start": 30}'),
    "squad_case": (
        SPAN,
        r"error: .*'mira kettle' is not in its context \(6 such questions\): .*skip_bad_answers=true$",
    ),
    "squad_flat": (SPAN, f'{MILL}, "answers": \\[{{"text": "1902", "start": 31}}\\]'),
    "squad_flat_list": (SPAN, r'\[{"text": "1902", "start": 31}, {"text": "in 1902", "start": 28}\]'),
    "squad_hf": (SPAN, f'{MILL}, "answers": \\[{{"text": "1902", "start": 31}}\\]'),
    "squad_hf_v2": (SPAN, f'{MILL}, "answers": \\[\\]'),
    "squad_start_minus1": (SPAN, f'train 6, dev 6\n.*{MILL}, "answers": \\[\\]'),
    "tags_hf": (TAGS, r"labels 0, 3, 7\n.*they are numbers: --config\.own\.labels=O,B-PER,\.\.\. names them"),
    "tags_pos": (TAGS, r"labels DT, NN, VBD\n.*without prefixes, scored by accuracy and F1 per tag"),
    "tsv_index": ({}, ROWS + ".*" + EXAMPLE % 0),
    "tsv_no_header": ({}, r"error: .*there are no columns 'text' and 'label'; the columns are .*: type " + NAMES),
    "tsv_pandas": ({}, ROWS + r'.*\\"really\\"\\nsecond line\\twith tab"'),
    "tsv_quotes": ({}, ROWS + r'.*"He said \\"the view was bad\\""'),
    "unique_labels": ({}, TEXTS + "labels note 0, note 1, "),
}

ENTITIES = r"train 60, dev 20\nlabels O, B-LOC, I-LOC, B-PER, I-PER\n"
COLUMN = r": name the column of the words with --config\.ner\.word_column, and .*config\.ner\.tag_column$"
NER = {
    "bioes": ENTITIES + r'.*also has E, S: read as B and I.*"tags": \["B-PER", "I-PER", "O", "O", "B-LOC"',
    "blank_spaces_crlf": ENTITIES,
    "comments": r"error: .*the words \(column 0\) are their numbers: 1, 2, 3" + COLUMN,
    "docstart_same_columns": ENTITIES + ".*documents: 1 of train, each from a line -DOCSTART-",
    "empty_word": r"error: .*train\.txt line 9: the word is empty: fix the line$",
    "index_first": r"error: .*the words \(column 0\) are their numbers: 1, 2, 3" + COLUMN,
    "iob2": ENTITIES,
    "label_studio": ENTITIES + ".*documents: 1 of train, each from a line -DOCSTART-",
    "long_url": ENTITIES,
    "lower_o": r"error: .*line 3: tag 'o' is not O, B-TYPE or I-TYPE .*: fix the tag, or write all ",
    "nbsp": ENTITIES + '.*"10\u00a0000"',
    "sentence_a_line": r"error: .*line 1: .* is not a tag: .*--config=configs/finetune_own\.py:tags$",
    "tag_first": r"error: .*the words \(column 0\) are tags: B-PER, I-PER, O" + COLUMN,
    "zero_width": ENTITIES + '.*"\u200b", "\u00ad"',
}

FORMAT = r": fix the file; SQuAD's format is data > paragraphs > .*$"
AT = r"error: .*data\[0\]\.paragraphs\[0\]\.qas\[0\]"
UNANSWERED = r"error: .*question 2 has no answers \(1 of 2 such questions\): .*unanswerable questions use squad_v2$"
ANSWERED = r'train 2, dev 2\n.*"answers": \[{"text": "1902", "start": 31}\]'
# Of SQuAD 1.1 and 2.0.
SQUAD = {
    "dup_ids": (r"error: .*qas\[1\]: id '0' is also that of .*qas\[0\]: give each question its own id$",) * 2,
    "empty_text_minus1": (UNANSWERED, ANSWERED),
    "float_id": (f"{AT}: 'id' is missing or not a text{FORMAT}",) * 2,
    "haystack_not_given": (UNANSWERED, ANSWERED),
    "impossible_null": (
        UNANSWERED,
        r"error: .*question 2 has no answers .*an unanswerable question has an empty list$",
    ),
    "impossible_string": (f"{AT}: 'is_impossible' is 'false': write true or false, without quotes$",) * 2,
    "no_answers_key_dev": (r"error: the train set of squad_v. has no labels: give a labeled file, ",) * 2,
    "no_id": (f"{AT}: 'id' is missing or not a text{FORMAT}",) * 2,
    "off_by_one": (r'train 1, dev 1\n.*{"text": "mill", "start": 24}',) * 2,
    "several": (r'\[{"text": "1902", "start": 31}, {"text": "in 1902", "start": 28}, {"text": "1902", "start": 31}\]',)
    * 2,
    "string_start": (AT + rf"\.answers\[0\]: 'answer_start' is missing or not a whole number{FORMAT}",) * 2,
    "top_list": (rf"error: .*'data' is missing or not a list{FORMAT}",) * 2,
}


@pytest.mark.parametrize("name", OWN)
def test_custom_data_is_read_right_or_one_line_says_what_to_type(name: str):
    options, expected = OWN[name]
    folder = folder_of_cases() / "own" / name
    found = outcome(lambda: task("own", folder, own=OwnOptions(**options)), folder=folder)
    assert re.search(expected, found, re.DOTALL), found
    assert not found.startswith("error") or "\n" not in found


@pytest.mark.parametrize("name", NER)
def test_conll_files_are_read_right_or_one_line_says_what_to_type(name: str):
    folder = folder_of_cases() / "ner" / name
    found = outcome(lambda: task("ner", folder), folder=folder)
    assert re.search(NER[name], found, re.DOTALL), found
    assert not found.startswith("error") or "\n" not in found


@pytest.mark.parametrize(
    ("name", "word_column", "tag_column"), [("comments", 1, 2), ("index_first", 1, -1), ("tag_first", 1, 0)]
)
def test_a_named_column_of_words_is_read(name: str, word_column: int, tag_column: int):
    options = NerOptions(word_column=word_column, tag_column=tag_column)
    found = outcome(lambda: task("ner", folder_of_cases() / "ner" / name, ner=options), folder=folder_of_cases())
    assert re.match(ENTITIES, found), found


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", SQUAD)
def test_squad_files_are_read_right_or_one_line_says_what_to_type(name: str, version: int):
    folder = folder_of_cases() / "squad" / name
    found = outcome(lambda: task(f"squad_v{version}", folder), folder=folder)
    assert re.search(SQUAD[name][version - 1], found, re.DOTALL), found
    assert not found.startswith("error") or "\n" not in found


@pytest.mark.parametrize(("group", "table"), [("own", OWN), ("ner", NER), ("squad", SQUAD)])
def test_every_case_of_a_task_has_a_row(group: str, table: dict[str, Any]):
    assert sorted(table) == sorted(path.name for path in (folder_of_cases() / group).iterdir())
