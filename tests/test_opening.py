import gzip
import json
from pathlib import Path

import pytest

from bert_jax.data.documents import ReadReport
from bert_jax.errors import UserError
from tests.texts import COMPRESSIONS, PARAGRAPHS, read, tar_of, write


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("is_named", [True, False])
def test_compression_changes_nothing(shared_data: Path, tmp_path: Path, suffix: str, is_named: bool):
    plain = shared_data / "pretrain_en" / "wiki_01"
    content = plain.read_bytes()
    half = len(content) // 2
    packed = COMPRESSIONS[suffix](content[:half]) + COMPRESSIONS[suffix](content[half:])  # two members, one file
    path = write(tmp_path / ("wiki_01" + suffix * is_named), packed)
    report = ReadReport()
    assert [d.sentences for d in read(path, report=report)] == [d.sentences for d in read(plain)]
    assert report.bytes == len(content)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("inner", ["txt", "tar"])
def test_cut_or_damaged_compression_is_refused(tmp_path: Path, suffix: str, inner: str):
    content = "".join(f"{i} {paragraph}\n\n" for i in range(2000) for paragraph in PARAGRAPHS).encode()
    content = tar_of({"a.txt": content}) if inner == "tar" else content
    packed = COMPRESSIONS[suffix](content)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0x10
    for damaged in [b"", packed[:5], packed[: len(packed) // 3], packed[: len(packed) - 1], bytes(flipped), content]:
        path = write(tmp_path / f"a.{inner}{suffix}", damaged)
        with pytest.raises(
            UserError, match=rf"a\.{inner}\{suffix} is damaged or cut short .*download or create it again"
        ):
            read(path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archive_gives_each_member_in_its_own_format(tmp_path: Path, mode: str):
    members = {
        "corpus/prose.txt": "\n\n".join(PARAGRAPHS).encode(),
        "./corpus/lines.jsonl.gz": gzip.compress(json.dumps({"text": PARAGRAPHS[0]}).encode()),
        "corpus/._prose.txt": b"what another system keeps about the file",
        "corpus/" + "long/" * 40 + "wiki_00": b'<doc id="1" title="T">\nT\n\nA text. More.\n</doc>\n',
        "corpus/picture.png": bytes(range(256)) * 10,
    }
    path = write(tmp_path / "a.tar", tar_of(members, mode))
    report = ReadReport()
    found = read(path, split_sentences=False, report=report)
    assert [document.sentences for document in found] == [PARAGRAPHS, [PARAGRAPHS[0]], ["A text. More."]]
    assert [document.key for document in found] == [
        "a.tar/corpus/prose.txt#0",
        "a.tar/corpus/lines.jsonl.gz#0",
        "a.tar/corpus/" + "long/" * 40 + "wiki_00#0",
    ]
    assert report.formats == {"a.tar": "jsonl, prose, wikiextractor"}
    assert report.not_text == 1


def test_cut_or_damaged_archive_is_refused(tmp_path: Path):
    content = "\n\n".join(PARAGRAPHS).encode()
    whole = tar_of({"a.txt": content, "b.txt": content})
    second = whole.index(b"b.txt")
    bad_header = bytearray(whole)
    bad_header[second + 150] ^= 0xFF  # within its checksum
    for damaged in [whole[: second + 300], whole[:second], whole[: second + 512 + 400], bytes(bad_header)]:
        with pytest.raises(UserError, match=r"a\.tar is damaged or cut short|b\.txt is damaged or cut short"):
            read(write(tmp_path / "a.tar", damaged))
