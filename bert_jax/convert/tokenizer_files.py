"""Write the tokenizer files of a HuggingFace folder, and find the tokenizer of one.

A fast tokenizer made from these files gives the ids of ours on ordinary text. The `tokenizers` library itself differs
on private-use characters and some CJK code points (its tables are of another Unicode version), and it takes a literal
"[MASK]" in raw text for the mask; our word limit of 200 characters, the original's, is written into the file.
"""

import json
from pathlib import Path
from typing import Any

from bert_jax.data.tokenization import Tokenizer, WordPieceTokenizer, load_tokenizer
from bert_jax.data.vocabulary import Vocabulary
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json

MAX_INPUT_CHARS_PER_WORD = 200
_SPECIALS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


def write_tokenizer_files(tokenizer: Tokenizer, folder: Path, *, max_seq_length: int) -> None:
    """Write vocab.txt, tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Raises:
      UserError: for a SentencePiece model, which HuggingFace's BERT tokenizer cannot express.
    """
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError(
            "a SentencePiece tokenizer cannot be exported: HuggingFace's BERT tokenizer is WordPiece; train with a "
            "WordPiece "
            "vocabulary (prepare without --vocab learns one)"
        )
    tokenizer.save(folder)
    specials = {f"{name}_token": piece for name, piece in _SPECIALS.items()}
    settings = {
        # Takes tokenizer.json as it is; transformers 5 gives BertTokenizer a word limit of its own, 100 characters.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "do_lower_case": tokenizer.do_lower_case,
        "do_basic_tokenize": True,
        "never_split": None,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": max_seq_length,
        **specials,
    }
    write_json(folder / "tokenizer_config.json", settings, indent=2)
    write_json(folder / "special_tokens_map.json", specials, indent=2)
    (folder / "tokenizer.json").write_text(json.dumps(_fast_tokenizer(tokenizer), ensure_ascii=False), encoding="utf-8")


def _fast_tokenizer(tokenizer: WordPieceTokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    ids = {piece: index for index, piece in enumerate(tokenizer.pieces)}
    first, a, b = _token("[CLS]", 0), _sequence("A", 0), _sequence("B", 1)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[piece],
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for piece in sorted(_SPECIALS.values(), key=ids.__getitem__)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
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
            "max_input_chars_per_word": MAX_INPUT_CHARS_PER_WORD,
            "vocab": ids,
        },
    }


def _token(piece: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": piece, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a folder: of vocab.txt or a .model file, else of tokenizer.json; or None.

    Raises:
      UserError: if what is there is broken, or does what our tokenizer does not.
    """
    file = folder / "tokenizer.json"
    fast = _from_fast_tokenizer(file) if file.exists() else None
    if (folder / "vocab.txt").exists() or any(folder.glob("*.model")):
        slow = load_tokenizer(folder)
        if fast is not None and fast.pieces != slow.pieces:
            raise UserError(
                f"{folder}: tokenizer.json and the vocabulary beside it hold other pieces ({fast.vocab_size} and "
                f"{slow.vocab_size}): keep the one that the model was trained with"
            )
        return slow
    return fast


def _from_fast_tokenizer(file: Path) -> Tokenizer:
    value = read_json(file)
    model, normalizer = value.get("model"), value.get("normalizer")
    if not isinstance(model, dict) or model.get("type", "WordPiece") != "WordPiece" or not isinstance(normalizer, dict):
        raise UserError(f"{file}: is no WordPiece tokenizer of BERT's kind: put the model's vocab.txt into the folder")
    expected = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    lower = normalizer.get("lowercase")
    if any(normalizer.get(name) != wanted for name, wanted in expected.items()) or not isinstance(lower, bool):
        raise UserError(f"{file}: its normalizer is not BERT's: name a model with BERT's own tokenizer")
    if normalizer.get("strip_accents") not in (None, lower):
        raise UserError(
            f"{file}: strip_accents differs from lowercase, which BERT's tokenizer cannot do: name another model"
        )
    expected = {"unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    other = [name for name, wanted in expected.items() if model.get(name, wanted) != wanted]
    before = value.get("pre_tokenizer")
    if other or not isinstance(before, dict) or before.get("type") != "BertPreTokenizer":
        raise UserError(
            f"{file}: its {(other or ['pre_tokenizer'])[0]} is not BERT's: name a model with BERT's own tokenizer"
        )
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
        raise UserError(f"{file}: model.vocab must give each piece its id: restore the file")
    pieces = dict.fromkeys(range(len(ids)), "")
    for piece, index in ids.items():
        if pieces.get(index) != "":
            raise UserError(f"{file}: model.vocab: the ids are not 0 to {len(ids) - 1}, each once: restore the file")
        pieces[index] = piece
    added = value.get("added_tokens") or []
    for token in added if isinstance(added, list) else [added]:
        if not isinstance(token, dict) or ids.get(token.get("content")) != token.get("id"):
            raise UserError(
                f"{file}: added_tokens holds what is no piece of the vocabulary ({str(token)[:60]}), which BERT's "
                "tokenizer cannot do: add words with `python -m bert_jax.export --extend_vocab=FILE` instead"
            )
        if token["content"] not in _SPECIALS.values():
            raise UserError(
                f"{file}: added_tokens takes {token['content']!r:.60} for a piece before words are cut, which BERT's "
                "tokenizer cannot do: name a model with BERT's own tokenizer"
            )
    return WordPieceTokenizer(Vocabulary(tuple(pieces.values()), do_lower_case=lower))
