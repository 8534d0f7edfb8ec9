"""The tokenizer files of a HuggingFace folder.

A fast tokenizer loaded from these files gives the same ids as ours on ordinary text. It differs on private-use
characters and some CJK code points, because the `tokenizers` library has tables of another Unicode version. It also
reads a literal "[MASK]" in raw text as the mask token. The original's word limit of 200 characters is in the files.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from bert_jax.data.added_tokens import read_added_tokens
from bert_jax.data.fast_tokenizer import FastTokenizer, is_fast, load_fast_tokenizer
from bert_jax.data.tokenization import Tokenizer, WordPieceTokenizer, load_tokenizer
from bert_jax.data.tokenizer_settings import check_settings, read_word_limit
from bert_jax.data.vocabulary import (
    CONFIG_FILE,
    MAX_INPUT_CHARS_PER_WORD,
    SPECIAL_PIECES,
    VOCABULARY_FILE,
    Vocabulary,
    added_tokens_decoder,
    load_vocabulary,
    read_casing,
    read_strip_accents,
)
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.json_files import read_json
from bert_jax.json_forms import Count, Text

_SPECIALS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


class _AddedToken(TypedDict):
    """An entry of `added_tokens`."""

    id: Count
    content: Text


class _FastTokenizer(TypedDict):
    """The parts of tokenizer.json whose types are checked while reading."""

    added_tokens: NotRequired[list[_AddedToken] | None]


def read_max_length(folder: Path) -> int:
    """Return the tokens to which the tokenizer of a folder cuts texts, 0 if it has no limit or no config.

    Raises:
      UserError: if the file is not a JSON object.
    """
    file = folder / CONFIG_FILE
    length = read_json(file).get("model_max_length") if file.is_file() else None
    return length if type(length) is int and 2 < length < 1 << 24 else 0  # 10^30 means no limit


def write_tokenizer_files(tokenizer: Tokenizer, folder: Path, *, max_seq_length: int, token_types: bool = True) -> None:
    """Write vocab.txt, tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    The files of a tokenizer of another kind are written as they were read, except for the length. `token_types` False
    is for models that do not take `token_type_ids`.

    Raises:
      UserError: for a SentencePiece model, which HuggingFace's BERT tokenizer cannot express.
    """
    if isinstance(tokenizer, FastTokenizer):
        tokenizer.save(folder)
        if (file := folder / CONFIG_FILE).is_file() and read_max_length(folder) != max_seq_length:
            write_json(file, read_json(file) | {"model_max_length": max_seq_length}, indent=2)
        return
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError(
            "a SentencePiece tokenizer cannot be exported, because HuggingFace's BERT tokenizer is WordPiece: train "
            "with a WordPiece vocabulary (prepare without --vocab learns one)"
        )
    vocabulary = tokenizer.vocabulary
    tokenizer.save(folder)
    specials = {f"{name}_token": token for name, token in _SPECIALS.items()}
    settings = {
        # This class uses tokenizer.json unchanged. BertTokenizer of transformers 5 has a word limit of 100 characters.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
        "do_lower_case": tokenizer.do_lower_case,
        "do_basic_tokenize": True,
        "never_split": None,
        "strip_accents": tokenizer.vocabulary.strip_accents,
        "tokenize_chinese_chars": True,
        "model_max_length": max_seq_length,
        **specials,
    }
    if vocabulary.max_input_chars_per_word != MAX_INPUT_CHARS_PER_WORD:
        settings["max_input_chars_per_word"] = vocabulary.max_input_chars_per_word
    if vocabulary.added:
        settings["added_tokens_decoder"] = _standard_tokens(vocabulary) | added_tokens_decoder(vocabulary)
    if further := [token.content for token in vocabulary.added if token.special]:
        specials = {**specials, "additional_special_tokens": further}
        settings["additional_special_tokens"] = further
    write_json(folder / "tokenizer_config.json", settings, indent=2)
    write_json(folder / "special_tokens_map.json", specials, indent=2)
    (folder / "tokenizer.json").write_text(json.dumps(_fast_tokenizer(tokenizer), ensure_ascii=False), encoding="utf-8")


def _fast_tokenizer(tokenizer: WordPieceTokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    vocabulary = tokenizer.vocabulary
    ids = {piece: index for index, piece in enumerate(vocabulary.pieces)}
    added = {**_standard_tokens(vocabulary), **added_tokens_decoder(vocabulary)}
    first, a, b = _token("[CLS]", 0), _sequence("A", 0), _sequence("B", 1)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": int(index), **fields} for index, fields in sorted(added.items(), key=_numeric)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": tokenizer.vocabulary.strip_accents,
            "lowercase": tokenizer.do_lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, a, _token("[SEP]", 0)],
            "pair": [first, a, _token("[SEP]", 0), b, _token("[SEP]", 1)],
            "special_tokens": {
                piece: {"id": piece, "ids": [ids[piece]], "tokens": [piece]} for piece in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": vocabulary.max_input_chars_per_word,
            "vocab": ids,
        },
    }


def _standard_tokens(vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """Return BERT's special tokens by id, in the form of added tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = {token: vocabulary.pieces.index(token) for token in _SPECIALS.values()}
    return {str(index): {"content": token, **flags} for token, index in ids.items()}


def _numeric(item: tuple[str, Any]) -> int:
    return int(item[0])


def _token(piece: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": piece, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a folder, from vocab.txt, a .model file, or tokenizer.json; None if there is none.

    A tokenizer.json that has no WordPiece vocabulary is read only where neither of the others is there.

    Raises:
      UserError: if a file is damaged, or describes a tokenizer that differs from ours.
    """
    file = folder / "tokenizer.json"
    has_file = (folder / VOCABULARY_FILE).exists() or any(folder.glob("*.model"))
    if not has_file and is_fast(folder):
        return load_fast_tokenizer(folder)
    fast = _read_fast_tokenizer(file) if file.exists() else None
    if fast is None or any(folder.glob("*.model")):
        return load_tokenizer(folder) if has_file else None
    vocabulary = fast.vocabulary(folder)
    if (folder / VOCABULARY_FILE).exists():
        slow = load_vocabulary(folder, do_lower_case=fast.do_lower_case, fast_tokens=fast.added)
        if slow.pieces not in (vocabulary.pieces, vocabulary.all_pieces):
            raise UserError(
                f"{folder}: tokenizer.json and the vocabulary file have different tokens ({vocabulary.size} and "
                f"{slow.size}): keep the one that the model was trained with"
            )
    return WordPieceTokenizer(vocabulary)


@dataclasses.dataclass(frozen=True)
class _Fast:
    """The content of a tokenizer.json that is BERT's."""

    pieces: tuple[str, ...]
    do_lower_case: bool
    strip_accents: bool | None
    max_input_chars_per_word: int
    added: Sequence[Any]

    def vocabulary(self, folder: Path) -> Vocabulary:
        """Return its vocabulary, with the added tokens in the other files of the folder."""
        config_file = folder / CONFIG_FILE
        casing = read_casing(config_file, do_lower_case=None)
        if casing not in (None, self.do_lower_case):
            raise UserError(
                f"{folder}: tokenizer.json has lowercase={self.do_lower_case}, but tokenizer_config.json has "
                f"do_lower_case={casing}: write the one that the model was trained with into both"
            )
        accents = self.do_lower_case if self.strip_accents is None else self.strip_accents
        if read_strip_accents(config_file) not in (None, accents):
            raise UserError(
                f"{folder}: tokenizer.json has strip_accents={accents}, but tokenizer_config.json has {not accents}: "
                "write the one that the model was trained with into both"
            )
        settings = read_json(config_file) if config_file.is_file() else {}
        check_settings(settings, file=config_file)
        return Vocabulary(
            self.pieces,
            do_lower_case=self.do_lower_case,
            strip_accents=self.strip_accents,
            added=read_added_tokens(
                folder, pieces=self.pieces, settings=settings, standard=SPECIAL_PIECES, fast=self.added
            ),
            max_input_chars_per_word=self.max_input_chars_per_word,
        )


def _read_fast_tokenizer(file: Path) -> _Fast:
    content = read_json(file, form=_FastTokenizer)
    model, normalizer = content.get("model"), content.get("normalizer")
    if not isinstance(model, dict) or model.get("type", "WordPiece") != "WordPiece" or not isinstance(normalizer, dict):
        raise UserError(f"{file}: not a WordPiece tokenizer like BERT's: put the model's vocab.txt into the folder")
    expected = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    lower = normalizer.get("lowercase")
    if any(normalizer.get(name) != value for name, value in expected.items()) or not isinstance(lower, bool):
        raise UserError(f"{file}: its normalizer is not BERT's: give a model with BERT's tokenizer")
    accents = normalizer.get("strip_accents")
    if accents is not None and not isinstance(accents, bool):
        raise UserError(f"{file}: strip_accents is {accents!r:.60}: restore the file")
    expected = {"unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    different = [name for name, default in expected.items() if model.get(name, default) != default]
    pre_tokenizer = content.get("pre_tokenizer")
    if different or not isinstance(pre_tokenizer, dict) or pre_tokenizer.get("type") != "BertPreTokenizer":
        raise UserError(
            f"{file}: its {(different or ['pre_tokenizer'])[0]} is not BERT's: give a model with BERT's tokenizer"
        )
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
        raise UserError(f"{file}: model.vocab must map each token to its id: restore the file")
    tokens = dict.fromkeys(range(len(ids)), "")
    for token, index in ids.items():
        if tokens.get(index) != "":
            raise UserError(f"{file}: model.vocab: the ids are not 0 to {len(ids) - 1}, each once: restore the file")
        tokens[index] = token
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise UserError(f"{file}: added_tokens must be a list: restore the file")
    limit = read_word_limit(model, file=file, default=100)  # the default of the tokenizers library
    return _Fast(
        tuple(tokens.values()),
        do_lower_case=lower,
        strip_accents=accents,
        max_input_chars_per_word=limit,
        added=added,
    )
