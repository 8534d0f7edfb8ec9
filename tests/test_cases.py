"""Corpora, folders and checkpoints that users brought: read right, or one line says what to type (shared cases).

`test_cases_tasks.py` has those of tasks.
"""

import re
import shutil
from pathlib import Path

import pytest
from cases import corpus, folder_of_cases, model, outcome

from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.vocabulary_extension import extend_source, read_words

ENCODING = r"error: no text in input .*: not UTF-8 text \(convert it, for example with: iconv -f ENCODING -t UTF-8\)"
ONE_DOCUMENT = r"error: .*there is only one: .*config\.data\.objective=mlm; .*--config\.data\.documents=lines "
ONE_SENTENCE = r"error: 100\.00% of the documents have one sentence, .*set --config\.data\.objective=mlm"


def found(documents: int, files: str) -> str:
    """Return the pattern of the line about an input that is read."""
    return rf"\nfound: {documents:,} documents? of [\d,]+ characters on average in {files}"


# File or folder, and what `prepare --dry_run` says of it.
PREP = {
    "arabic.txt": found(120, r"1 file \(1 sentences\)"),
    "array.json": found(300, r"1 file \(1 json\)"),
    "bom_crlf.txt": ONE_DOCUMENT,
    "code": found(440, r"40 files \(40 sentences\)"),
    "content.jsonl": r"error: .*\(fields: content, meta\)\): type --config\.data\.text_key=content$",
    "cp1252.txt": ENCODING,
    "dna_lines.txt": ONE_DOCUMENT,
    "gbk.txt": ENCODING,
    "hf_disk": found(500, r"3 files \(1 arrow\)") + r"\n.*left out: 2 files",
    "hindi.txt": found(150, r"1 file \(1 sentences\)"),
    "koi8.txt": ENCODING,
    "mixed": found(4, r"4 files \(2 prose, 1 sentences\); texts\.zip is an archive of 2 texts") + ".*metadata.json",
    "nested.jsonl": r"error: .*type --config\.data\.text_key=text\.body$",
    "object.json": ONE_SENTENCE,
    "one_doc.txt": ONE_DOCUMENT,
    "one_doc_lines.txt": ONE_DOCUMENT,
    "persian.txt": found(120, r"1 file \(1 sentences\)"),
    "protein_spaced.txt": ONE_DOCUMENT,
    "rows.csv": ONE_SENTENCE,
    "rows.parquet": found(500, r"1 file \(1 parquet\)") + r".*this is row number 0 \. \| it has two sentences \.",
    "rows.tsv": found(500, r"1 file \(1 tsv\)"),
    "texts.zip": found(2, r"1 file \(1 prose\); texts\.zip is an archive of 2 texts \(2 prose\)"),
    "thai_long.txt": found(100, r"1 file \(1 sentences\)"),
    "thai_spaces.txt": found(200, r"1 file \(1 sentences\)"),
    "tweets.jsonl": r"error: .*type --config\.data\.text_key=full_text$",
    "tweets_a_line.txt": ONE_DOCUMENT,
    "tweets_blank.txt": ONE_DOCUMENT,
    "tweets_text.jsonl": ONE_SENTENCE,
    "utf16_nobom.txt": ENCODING,
    "utf16le.txt": ENCODING,
}
# The advice of the line above, followed.
FOLLOWED = {
    "content.jsonl": ({"text_key": "content", "objective": "mlm"}, 500),
    "nested.jsonl": ({"text_key": "text.body", "objective": "mlm"}, 500),
    "object.json": ({"objective": "mlm"}, 300),
    "rows.csv": ({"objective": "mlm"}, 500),
    "tweets.jsonl": ({"text_key": "full_text", "objective": "mlm"}, 3000),
    "tweets_a_line.txt": ({"documents": "lines", "objective": "mlm"}, 3000),
    "tweets_blank.txt": ({"documents": "blank_lines", "objective": "mlm"}, 3000),
    "dna_lines.txt": ({"documents": "lines", "objective": "mlm"}, 300),
}
ANOTHER_WORD = r"error: new word %s: the tokenizer never produces this word from text: write "
WORDS = {
    "caps_crlf.txt": ANOTHER_WORD % "'COVID'" + "'covid'$",
    "counts.tsv": ANOTHER_WORD % r"'covid\\t120'",
    "markers.txt": ANOTHER_WORD % r"'\[E1\]'",
    "mixed.txt": ANOTHER_WORD % "'covid-19'",
    "plain.txt": r"^covid, remdesivir$",
    "utf16.txt": r"error: .*cannot read a list of words .*: give a UTF-8 file with one word per line$",
}

BERT = r"BertForPreTraining, labels $"
CLASSES = r"BertForSequenceClassification, labels "
TOKENIZER = r": give a model with BERT's tokenizer$"
HF = {
    "adapter_named": BERT,
    "added_tokens": BERT,
    "bert_config_name": r"error: .*contains no model: give a workdir, ",
    "bert_doubled": r"begin with 'bert\.', which is left out\n" + BERT,
    "bertmodel_position_ids": "BertModel, labels $",
    "cased_strip_false": BERT,
    "config_directionality": BERT,
    "config_dropout_null": BERT,
    "config_only_changed_fields": BERT,
    "custom_class": r"error: .*unsupported architecture BertForMultiLabelClassification: supported are ",
    "custom_class_crf": r"error: .*unsupported architecture BertCrfForNer: supported are ",
    "decoder_bias_only": BERT,
    "fast_added": BERT,
    "fast_added_and_vocab": BERT,
    "fast_only": BERT,
    "fast_truncation_padding": BERT,
    "fast_tutorial": r"error: .*tokenizer\.json: its normalizer is not BERT's" + TOKENIZER,
    "float16_mixed": BERT,
    "hub_cache": r"error: .*a download cache of HuggingFace.*hub_cache/models--x--y/snapshots/abc$",
    "id2label_default_2_but_3": CLASSES,
    "id2label_gap": r"error: .*id2label must map consecutive ids from 0 to names: write it as in ",
    "id2label_ints": CLASSES + "0, 1, 2$",
    "id2label_list": r"error: .*id2label must map ids to names: write it as in ",
    "label2id_only": CLASSES,
    "label2id_strings": CLASSES + "neg, neu, pos$",
    "lmhead_decoder": "BertLMHeadModel, labels $",
    "lower_but_accents": BERT,
    "model_prefix": BERT,
    "module_prefix": r"begin with 'module\.', which is left out\n" + BERT,
    "multilabel": CLASSES + "t0, t1, t2, t3$",
    "no_bert_prefix_with_cls": BERT,
    "no_decoder": BERT,
    "no_tokenizer_config": BERT,
    "num_labels_1": CLASSES + "LABEL_0$",
    "num_labels_1_nofield": CLASSES,
    "num_labels_old": CLASSES,
    "num_labels_underscore": CLASSES,
    "old_config_minimal": "BertForMaskedLM, labels $",
    "padded_rows_config_not": BERT,
    "padded_vocab": BERT,
    "padded_vocab_bias_not": BERT,
    "pickle_only": r"error: .*pytorch_model\.bin: pickle files are not read, ",
    "position_ids": BERT,
    "st_old": r"whose model is in 0_Transformer/\nBertModel, labels $",
    "tok_additional_special": BERT,
    "tok_albert": r"error: .*AlbertTokenizer, which splits text differently than BertTokenizer" + TOKENIZER,
    "tok_blank_piece": r"error: .*line 4001 of 5000 is blank: remove it or write its token$",
    "tok_dup_piece": r"error: .*'1952' occurs twice, in lines 4000 and 4001: remove one, ",
    "tok_japanese": r"error: .*BertJapaneseTokenizer, which splits text differently than BertTokenizer" + TOKENIZER,
    "tok_japanese_char": r"error: .*BertJapaneseTokenizer, which splits" + ".*" + TOKENIZER,
    "tok_no_basic": r"error: .*do_basic_tokenize is 'False', .*" + TOKENIZER,
    "tok_roberta_specials": r"error: .*the special tokens \[PAD\] \[UNK\] \[CLS\] \[SEP\] \[MASK\] are missing: ",
    "token_cls_with_pooler": r"skipped the pooler.*\nBertForTokenClassification, labels O, B-PER, I-PER, B-LOC, I-LOC$",
    "tokenizer_config_no_case": BERT,
    "type_vocab_1": BERT,
    "untied": BERT,
    "vocab_crlf": BERT,
    "vocab_no_last_newline": BERT,
    "vocab_shorter": BERT,
    "wwm_pickle": r"error: .*pickle files are not read, .*copy bert_config\.json to config\.json, ",
}
# Ids of text, as transformers' tokenizer of the folder gives them.
IDS = {
    "added_tokens": ("covid [E1] c", [5000, 5001, 1039]),
    "fast_added": ("covid [E1] c", [5000, 5001, 1039]),
    "fast_added_and_vocab": ("covid [E1] c", [5000, 5001, 1039]),
    "tok_additional_special": ("[unused1] c", [2, 1039]),
    "lower_but_accents": ("CAF\u00c9 don't", [100, 2123, 1005, 1056]),
    "cased_strip_false": ("COVID don't", [100, 2123, 1005, 1056]),
    "vocab_crlf": ("caf\u00e9", [1039, 2050, 2546, 2063]),
}
CONFIG = r"error: .*bert_config\.json: does not exist: put it there, or name another folder$"
TF1 = {
    "albert_config_name": CONFIG,
    "config_json_name": CONFIG,
    "local_step": BERT,
    "module_scope": r"begin with 'module/', which is left out\n" + BERT,
    "no_pooler_mlm_only": "BertForMaskedLM, labels $",
    "pad_at_1": BERT,
    "release": BERT,
    "roberta_tf": r"error: .*do not fit the config: 1 missing: bert/embeddings/token_type_embeddings; ",
    "run_classifier": CLASSES,
    "run_classifier_no_config": CONFIG,
    "tf2_object": r"error: .*a TF2 object-based checkpoint ",
    "trained_adam": BERT,
    "two_in_folder": BERT,
    "wwm_cn_config": BERT,
}


def check(expected: str, text: str) -> None:
    """Check what is said; an error is one line."""
    assert re.search(expected, text, re.DOTALL), text
    assert not text.startswith("error") or "\n" not in text


@pytest.mark.parametrize("name", PREP)
def test_a_corpus_is_read_right_or_one_line_says_what_to_type(name: str):
    folder = folder_of_cases() / "prep"
    check(PREP[name], outcome(lambda: corpus(folder / name), folder=folder))


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_advice_leads_to_the_documents_of_the_corpus(name: str):
    settings, documents = FOLLOWED[name]
    folder = folder_of_cases() / "prep"
    check(found(documents, "1 file"), outcome(lambda: corpus(folder / name, **settings), folder=folder))


@pytest.mark.parametrize("name", WORDS)
def test_a_list_of_words_is_read_or_one_line_says_what_to_write(name: str, tmp_path: Path):
    copy = shutil.copytree(folder_of_cases() / "hf" / "position_ids", tmp_path / "model")
    _, source = model(copy, copy)
    assert source is not None

    def read() -> str:
        words = read_words(folder_of_cases() / "words" / name)
        extend_source(source, words=words)
        return ", ".join(words)

    check(WORDS[name], outcome(read, folder=folder_of_cases() / "words"))


@pytest.mark.parametrize("name", HF)
def test_a_folder_is_loaded_or_one_line_says_why_not(name: str, tmp_path: Path):
    original = folder_of_cases() / "hf" / name
    copy = shutil.copytree(original, tmp_path / name, symlinks=True)
    text, loaded = model(original, copy)
    check(HF[name], text.replace(f"{tmp_path}/", ""))
    if loaded is not None and name in IDS:
        content, ids = IDS[name]
        assert loaded.require_tokenizer().encode(content) == ids


@pytest.mark.parametrize("name", TF1)
def test_a_tf1_checkpoint_is_loaded_or_one_line_says_why_not(name: str):
    folder = folder_of_cases() / "tf1"
    index = next(iter(sorted((folder / name).glob("*.index"))), folder / name)

    def read() -> str:
        lines: list[str] = []
        loaded = load_pretrained(index.with_suffix(""), report=lines.append)
        return "\n".join([*lines, f"{loaded.architecture}, labels {', '.join(loaded.labels)}"])

    check(TF1[name], outcome(read, folder=folder))


@pytest.mark.parametrize(("group", "table"), [("prep", PREP), ("words", WORDS), ("hf", HF), ("tf1", TF1)])
def test_every_case_has_a_row(group: str, table: dict[str, str]):
    names = [path.name for path in (folder_of_cases() / group).iterdir() if path.name != "README"]
    assert sorted(table) == sorted(names)
