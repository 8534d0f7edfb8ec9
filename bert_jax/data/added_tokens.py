"""Tokens that HuggingFace's tokenizers keep whole: they are cut out of the text before the rules of wordpiece.py.

A folder lists them in up to four files: `added_tokens` of tokenizer.json, `added_tokens_decoder` or
`additional_special_tokens` of tokenizer_config.json (the latter also in special_tokens_map.json), added_tokens.json.
BERT's five special tokens are in these lists too. They are left out here: no tokenizer of ours reads them in text.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.data.wordpiece import normalized_characters, normalized_text
from bert_jax.errors import UserError
from bert_jax.json_files import read_json

ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Their names before transformers 5 and since.
_EXTRA = ("additional_special_tokens", "extra_special_tokens")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text itself; the flags are those of HuggingFace's AddedToken.

    `normalized` matches its normalized text in the normalized text ("COVID" finds "covid" in lower case), `single_word`
    only between characters that are not of a word. `lstrip`, `rstrip` and `special` do not affect ids.
    """

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class AddedTokenSplitter:
    """Cuts added tokens out of texts as the `tokenizers` library does: leftmost first, then the longest.

    Tokens that are not normalized are matched first, in the text as it is.
    """

    def __init__(self, tokens: Sequence[AddedToken], *, do_lower_case: bool, strip_accents: bool):
        """Compile the patterns."""
        self._rules = {"do_lower_case": do_lower_case, "strip_accents": strip_accents}
        self._raw = {token.content: token for token in tokens if not token.normalized}
        self._normalized = {
            content: token
            for token in tokens
            if token.normalized and (content := normalized_text(token.content, **self._rules)).strip()
        }
        self._raw_pattern = _pattern(self._raw)
        self._normalized_pattern = _pattern(self._normalized)

    def split(self, text: str) -> list[tuple[int, int, int | None]]:
        """Return the spans that cover `text`, each with the id of its added token, None for ordinary text."""
        spans: list[tuple[int, int, int | None]] = []
        for start, end, token_id in _cut(text, self._raw_pattern, self._raw):
            if token_id is not None:
                spans.append((start, end, token_id))
            else:
                spans += [(start + a, start + b, number) for a, b, number in self._split_normalized(text[start:end])]
        return spans

    def encode(
        self, texts: Sequence[str], *, ordinary: Callable[[Sequence[str]], Any], dtype: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the concatenated ids of `texts`, and the number of ids of each.

        `ordinary` returns the `ids` and `lengths` of texts without added tokens.
        """
        spans = [self.split(text) for text in texts]
        between = [
            text[start:end]
            for text, parts in zip(texts, spans, strict=True)
            for start, end, token_id in parts
            if token_id is None
        ]
        batch = ordinary(between)
        if len(between) == len(texts) == sum(map(len, spans)):  # no added token in any text
            return batch.ids, batch.lengths
        pieces = iter(np.split(batch.ids, np.cumsum(batch.lengths)[:-1]))
        ids = [
            [next(pieces) if token_id is None else np.array([token_id], dtype) for _, _, token_id in parts]
            for parts in spans
        ]
        lengths = np.array([sum(map(len, parts)) for parts in ids], np.int64)
        return np.concatenate([np.zeros(0, dtype), *(part for parts in ids for part in parts)]), lengths

    def _split_normalized(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        pattern = self._normalized_pattern
        if pattern is None or not pattern.search(normalized_text(text, **self._rules)):
            yield 0, len(text), None
            return
        normalized, sources = normalized_characters(text, **self._rules)
        position = 0
        for _, end, token_id in _cut(normalized, pattern, self._normalized):
            # Characters that normalization drops belong to the span before them, as accents do.
            last = sources[end] if end < len(sources) else len(text)
            yield position, last, token_id
            position = last


def _pattern(contents: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _cut(
    text: str, pattern: re.Pattern[str] | None, tokens: Mapping[str, AddedToken]
) -> Iterator[tuple[int, int, int | None]]:
    position = 0
    for match in pattern.finditer(text) if pattern is not None else ():
        start, end = match.span()
        token = tokens[match.group()]
        if token.single_word and (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
            continue
        if position < start:
            yield position, start, None
        yield start, end, token.id
        position = end
    if position < len(text):
        yield position, len(text), None


def _is_word(char: str) -> bool:
    return re.match(r"\w", char) is not None


def read_added_tokens(
    folder: pathlib.Path,
    *,
    pieces: Sequence[str],
    settings: Mapping[str, Any],
    standard: Sequence[str],
    fast: Sequence[Any] = (),
) -> tuple[AddedToken, ...]:
    """Return the added tokens of a HuggingFace folder with the ids that its tokenizer gives them.

    Args:
      folder: the folder.
      pieces: of its vocabulary, without added tokens.
      settings: the content of tokenizer_config.json.
      standard: the special tokens, which are left out.
      fast: `added_tokens` of tokenizer.json.

    Raises:
      UserError: naming the file, if an entry is malformed, or its id is not that of HuggingFace's tokenizer.
    """
    tokens = _Collected(pieces, standard=standard)
    for entry in fast:
        tokens.add(entry, file=folder / "tokenizer.json", field="added_tokens")
    file = folder / "tokenizer_config.json"
    if "added_tokens_decoder" in settings:
        for index, entry in sorted(_object(settings, "added_tokens_decoder", file=file).items(), key=_number):
            fields = entry if isinstance(entry, Mapping) else {"content": entry}
            tokens.add({**fields, "id": _as_id(index)}, file=file, field="added_tokens_decoder")
    else:
        tokens.add_file(folder / ADDED_TOKENS_FILE, specials=_contents(settings, file=file))
    tokens.add_specials(settings, file=file)
    # As in transformers 5: the list of tokenizer_config.json replaces that of the older file.
    older = folder / SPECIAL_TOKENS_FILE
    if "added_tokens_decoder" not in settings and not any(map(settings.get, _EXTRA)) and older.is_file():
        tokens.add_specials(read_json(older), file=older)
    return tuple(sorted(tokens.tokens.values(), key=lambda token: token.id))


class _Collected:
    """The added tokens of the files read so far."""

    def __init__(self, pieces: Sequence[str], *, standard: Sequence[str]):
        self.tokens: dict[str, AddedToken] = {}
        self._ids = {piece: index for index, piece in enumerate(pieces)}
        self._next = len(pieces)
        self._standard = standard

    def add(self, entry: Any, *, file: pathlib.Path, field: str) -> None:
        """Add an entry; one without an id gets the vocabulary's, else the next free one."""
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if not isinstance(content, str) or not content:
            raise UserError(f"{file}: {field} contains {str(entry)[:60]}: write an object with a content and an id")
        if content in self.tokens or (content in self._standard and content in self._ids):
            return
        flags = {name: entry[name] for name in _FLAGS if name in entry}
        if not all(isinstance(value, bool) for value in flags.values()):
            raise UserError(f"{file}: {field}: {content!r:.60}: {', '.join(_FLAGS)} must be true or false")
        expected = self._ids.get(content, self._next)
        if entry.get("id", expected) != expected or isinstance(entry.get("id"), bool):
            where = "its id in the vocabulary" if content in self._ids else "the next id after the vocabulary"
            raise UserError(
                f"{file}: {field} gives {content!r:.60} the id {str(entry.get('id'))[:20]}, but {where} is {expected}, "
                "which HuggingFace's tokenizer uses: restore the tokenizer's files"
            )
        self._next = max(self._next, expected + 1)
        self.tokens[content] = AddedToken(id=expected, content=content, **flags)

    def add_file(self, file: pathlib.Path, *, specials: Sequence[str]) -> None:
        """Add the tokens of an added_tokens.json."""
        if not file.is_file():
            return
        for content, index in sorted(read_json(file).items(), key=lambda item: _number((item[1], None))):
            special = content in specials
            entry = {"content": content, "id": _as_id(index), "normalized": not special, "special": special}
            self.add(entry, file=file, field="it")

    def add_specials(self, settings: Mapping[str, Any], *, file: pathlib.Path) -> None:
        """Add the further special tokens of a file; they are not normalized."""
        for field in _EXTRA:
            for entry in _listed(settings, field, file=file):
                fields = {"content": entry} if isinstance(entry, str) else entry
                if isinstance(fields, Mapping):
                    fields = {"normalized": False, **fields, "special": True}
                self.add(fields, file=file, field=field)


def _object(settings: Mapping[str, Any], name: str, *, file: pathlib.Path) -> Mapping[str, Any]:
    value = settings[name]
    if not isinstance(value, Mapping):
        raise UserError(f"{file}: {name} must map ids to tokens: restore the file")
    return value


def _listed(settings: Mapping[str, Any], name: str, *, file: pathlib.Path) -> list[Any]:
    value = settings.get(name) or []
    value = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(value, list):
        raise UserError(f"{file}: {name} must be a list of tokens: restore the file")
    return value


def _contents(settings: Mapping[str, Any], *, file: pathlib.Path) -> list[str]:
    entries = [entry for field in _EXTRA for entry in _listed(settings, field, file=file)]
    return [str(entry.get("content")) if isinstance(entry, Mapping) else str(entry) for entry in entries]


def _as_id(value: Any) -> Any:
    """Return the id in a key of JSON; anything else as it is, which no id equals."""
    is_number = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10
    return int(value) if is_number else value


def _number(item: tuple[Any, Any]) -> float:
    value = _as_id(item[0])
    return value if isinstance(value, int) else float("inf")
