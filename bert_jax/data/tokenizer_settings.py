"""Checks of HuggingFace's tokenizer_config.json: which of the tokenizers with a vocab.txt are BERT's."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

from bert_jax.errors import UserError
from bert_jax.json_files import load_json

# Classes that tokenize as BertTokenizer does, most of them with another name only; None and "" name no class.
_SAME = ("Bert", "DistilBert", "Electra", "MobileBert", "SqueezeBert", "ConvBert", "LayoutLM", "Lxmert", "RetriBert")
_SAME += ("DPRContextEncoder", "DPRQuestionEncoder", "DPRReader", "Realm")
_CLASSES = {None, "", "PreTrainedTokenizerFast", "TokenizersBackend"}
_CLASSES |= {f"{name}Tokenizer{fast}" for name in _SAME for fast in ("", "Fast")}
# Switches with the values that BERT's tokenizer has. A field that is missing or null has BERT's value.
_SWITCHES: Mapping[str, tuple[Any, ...]] = {
    "do_basic_tokenize": (True,),
    "clean_text": (True,),
    "word_tokenizer_type": ("basic",),
    "subword_tokenizer_type": ("wordpiece",),
    "wordpieces_prefix": ("##",),
    **{f"{name}_token": (f"[{name.upper()}]",) for name in ("unk", "sep", "pad", "cls", "mask")},
}


def check_settings(settings: Mapping[str, Any], *, file: pathlib.Path) -> None:
    """Check that the tokenizer_config.json `file`, or config.json next to it, describes BERT's WordPiece tokenizer.

    Raises:
      UserError: naming the class or the switch of another tokenizer.
    """
    name, source = settings.get("tokenizer_class"), file
    if name is None:
        source = file.with_name("config.json")
        name = class_in_config(file.parent)
    if not isinstance(name, str | None) or name not in _CLASSES:
        raise UserError(
            f"{source}: tokenizer_class is {str(name)[:60]}, which splits text differently than BertTokenizer: give a "
            "model with BERT's tokenizer"
        )
    for switch, values in _SWITCHES.items():
        value = settings.get(switch)
        value = value.get("content") if isinstance(value, Mapping) else value
        if value is not None and value not in values:
            raise UserError(
                f"{file}: {switch} is {str(value)[:60]!r}, so the tokenizer is not BERT's, which has {values[0]!r}: "
                "give a model with BERT's tokenizer"
            )


def class_in_config(folder: pathlib.Path) -> Any:
    """Return the tokenizer class that a folder's config.json names, None if it names none."""
    with contextlib.suppress(OSError, ValueError):
        config = load_json(folder / "config.json")
        return config.get("tokenizer_class") if isinstance(config, Mapping) else None
    return None


def read_word_limit(settings: Mapping[str, Any], *, file: pathlib.Path, default: int) -> int:
    """Return `max_input_chars_per_word` of a tokenizer file.

    Raises:
      UserError: if it is not a positive number.
    """
    value = settings.get("max_input_chars_per_word")
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise UserError(f"{file}: max_input_chars_per_word is {str(value)[:20]!r}: write a whole number from 1")
    return value
