"""Folders with added tokens, made at random: the ids are those of transformers' tokenizer, before and after export."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")

from source_helpers import vocabulary  # noqa: E402

from bert_jax.convert.tokenizer_files import find_tokenizer, write_tokenizer_files  # noqa: E402
from bert_jax.data.tokenization import WordPieceTokenizer  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]  # the oracle's own warnings are not ours
TOKENS = ["covid", "COVID", "[E1]", "[/E1]", "naïve", "中文", "é", "ΑΣ", "the", "covid19", "x.", "-."]
BITS = [
    "covid",
    "COVID",
    "Covid",
    "[E1]",
    "[/E1]",
    "[e1]",
    "the",
    "Naïve",
    "naïve",
    "中文",
    "中",
    "文字",
    "é",
    "COVID19",
]
BITS += ["x", " ", "  ", "\t", "-", ".", "[unused1]", "İstanbul", "ΑΣ", "co\u200bvid", "_", "Γ"]


@pytest.fixture(autouse=True)
def _quiet_oracle() -> None:
    transformers.logging.set_verbosity_error()


def make_folder(folder: Path, *, form: str, chance: random.Random) -> Path:
    """Write a folder of one form with tokens and flags at random."""
    folder.mkdir()
    names = vocabulary().pieces
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in names))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    settings: dict[str, Any] = {"do_lower_case": chance.random() < 0.6, "tokenizer_class": "BertTokenizer"}
    picked = chance.sample(TOKENS, chance.randint(1, 6))
    new = [token for token in picked if token not in names]
    ids = {token: names.index(token) if token in names else len(names) + new.index(token) for token in picked}
    if form == "fast":
        flags = [{name: chance.random() < 0.4 for name in ("single_word", "normalized")} for _ in picked]
        tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=settings["do_lower_case"])
        pairs = zip(picked, flags, strict=True)
        tokenizer.add_tokens([transformers.AddedToken(token, **flag) for token, flag in pairs])
        tokenizer.save_pretrained(folder)
        return folder
    if form == "older":
        (folder / "added_tokens.json").write_text(json.dumps({token: ids[token] for token in new}))
        if chance.random() < 0.5:
            settings["additional_special_tokens"] = picked[:2]
        (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": picked[-2:]}))
    elif form == "special":
        settings["additional_special_tokens"] = picked
    else:
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        flags = [{name: chance.random() < 0.4 for name in names} for _ in picked]
        entries = sorted(zip(picked, flags, strict=True), key=lambda entry: ids[entry[0]])
        settings["added_tokens_decoder"] = {str(ids[token]): {"content": token, **flag} for token, flag in entries}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("form", ["older", "special", "decoder", "fast"])
def test_added_tokens_have_the_ids_of_transformers(tmp_path: Path, form: str):
    chance = random.Random(form)
    for number in range(6):
        folder = make_folder(tmp_path / f"{number}", form=form, chance=chance)
        ours = find_tokenizer(folder)
        assert isinstance(ours, WordPieceTokenizer)
        out = tmp_path / f"{number}-out"
        out.mkdir()
        write_tokenizer_files(ours, out, max_seq_length=32)
        (out / "config.json").write_text('{"model_type": "bert"}')
        theirs, again = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, out))
        for _ in range(40):
            text = "".join(chance.choice(BITS) + chance.choice(["", " ", "", "."]) for _ in range(chance.randint(1, 9)))
            expected = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode(text) == expected, (folder, text)
            assert ours.encode_with_offsets(text).ids == expected
            assert again(text, add_special_tokens=False)["input_ids"] == expected
