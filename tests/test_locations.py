"""Paths that cannot be used are refused in one line before any work, by the same function for every command."""

import os
import re
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_jax import limits
from bert_jax.config import DataConfig, from_config_dict
from bert_jax.convert.loading import load_pretrained
from bert_jax.data.builder import build_dataset
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.errors import UserError
from bert_jax.locations import local_path, output_file, refuse_url
from bert_jax.parallel.distributed import start
from bert_jax.parallel.rendezvous import gather_names
from bert_jax.planning.compiling import prepare_environment
from bert_jax.prediction.json_lines import check_output
from bert_jax.runs.workdir import SameRun, open_workdir
from tests.runs import run

SCHEMES = ("gs", "s3", "az", "hdfs", "memory", "file", "http", "https", "GS")
FLAGS = {
    "train": ("workdir", "init"),
    "distill": ("workdir", "init", "teacher"),
    "finetune": ("workdir", "init", "data_dir"),
    "prepare": ("out", "input", "vocab"),
    "predict": ("model", "input", "output"),
    "export": ("out", "checkpoint", "extend_vocab"),
    "evaluate": ("model", "data", "predictions"),
    "plan": ("hlo",),
    "doctor": ("workdir", "out"),
}

# Flags that may be a folder in a bucket.
IN_BUCKET = {
    "train": ("workdir", "init"),
    "finetune": ("init",),
    "prepare": ("out",),
    "predict": ("model",),
    "export": ("out", "checkpoint"),
    "evaluate": ("model", "data"),
}


@pytest.mark.parametrize("name", list(FLAGS))
def test_a_url_in_any_flag_of_a_command_is_refused_before_any_work(tmp_path: Path, name: str):
    for flag in FLAGS[name]:
        is_in_bucket = flag in IN_BUCKET.get(name, ())
        url, kinds = ("s3://bucket/x", ", except gs://") if is_in_bucket else ("gs://bucket/x", "")
        done = run([sys.executable, "-m", f"bert_jax.{name}", f"--{flag}={url}"], cwd=tmp_path)
        if name == "prepare":  # two flags are required
            others = [f"--{other}=a" for other in ("input", "out") if other != flag]
            done = run([sys.executable, "-m", f"bert_jax.{name}", f"--{flag}={url}", *others], cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.strip() == (
            f"error: --{flag}={url}: URLs are not supported{kinds}: mount the bucket as a folder (for example with "
            "gcsfuse), or copy its files, and name that folder"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["train --workdir=", "prepare --input=a --out=", "export --out=", "predict --output="]
)
def test_an_output_that_is_empty_is_not_the_current_folder(tmp_path: Path, command: str):
    name, *arguments = command.split()
    done = run([sys.executable, "-m", f"bert_jax.{name}", *arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: {arguments[-1].removesuffix('=')} is empty: name a folder or file" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_refused_wherever_it_stands(scheme: str):
    for value in (f"{scheme}://a", f"{scheme}://", f"a.txt, {scheme}://a"):
        with pytest.raises(UserError, match=r"^--out=.*: URLs are not supported: (mount|type the path|download)"):
            refuse_url(value, name="--out")


@pytest.mark.parametrize(
    "value", ["tfds:wikipedia/20230601.en", "tfds:gs://bucket/x", "C:/x", "a:b", "a//b", "x://y"[1:], "s3", "10:30/a"]
)
def test_what_is_not_a_url_passes(value: str):
    refuse_url(value, name="--input")


@pytest.mark.parametrize("value", ["gs:/bucket/f", "s3:b", "S3:/b", "http:/x", "host:/folder", "a.txt,gs:x"])
def test_a_url_without_its_slashes_makes_no_folder_of_that_name(value: str):
    with pytest.raises(UserError, match=r"^--out=.*: URLs are not supported: "):
        refuse_url(value, name="--out")


@pytest.mark.parametrize("value", ["GS://bucket/x", "gs:/bucket/x", "gs:bucket"])
def test_a_bucket_is_written_with_two_slashes_and_in_lower_case(value: str):
    with pytest.raises(UserError, match="write gs://BUCKET/FOLDER, with two slashes and in lower case"):
        refuse_url(value, name="--out", buckets=True)


def test_an_output_is_a_file_and_no_pipe_unless_it_is_written_as_it_is(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert output_file(str(tmp_path / "pipe"), name="--out", pipes=True) == tmp_path / "pipe"
    with pytest.raises(UserError, match=r"^--out=.*: this is a pipe or a device: name a file"):
        output_file(str(tmp_path / "pipe"), name="--out")


@pytest.mark.parametrize("url", ["gs://", "gs://a", "gs://bucket", "gs://bucket/", "gs:///x", "gs://Bucket/x"])
@pytest.mark.parametrize("rest", ["", "//y", "/../y", "/*.txt", "/a b"])
def test_a_folder_in_a_bucket_is_named_whole(url: str, rest: str):
    for value in (url + rest, f"gs://bucket/x{rest or '?'}"):
        with pytest.raises(UserError, match=r"^--out=.*: write gs://BUCKET/FOLDER: a bucket has three or more"):
            refuse_url(value, name="--out", buckets=True)
    refuse_url("gs://bucket-1.example/a/b_c-d/", name="--out", buckets=True)
    with pytest.raises(UserError, match="URLs are not supported, except gs://"):
        refuse_url("gs-like://bucket/x", name="--out", buckets=True)


def test_functions_refuse_what_their_commands_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    never = SameRun(command="train", read=dict, free=re.compile(""), has_begun=lambda path: False)
    calls = {
        "workdir": lambda value: open_workdir(value, config=DataConfig(), same_run=never),
        "out": lambda value: build_dataset(DataConfig(input="x"), out=value, max_seq_lengths=[8], vocab_size=0),
        "output": check_output,
    }
    wrong = {"gs://a": "URLs are not", "": "is empty", "x" * 300: "name too long", "\udcff": "UTF-8"}
    for call in calls.values():
        for value, reason in wrong.items():
            with pytest.raises(UserError, match=f"(?i)^--.*{reason}"):
                call(value)
    with pytest.raises(UserError, match="URLs are not supported"):
        load_pretrained("s3://a/b")
    for value in ("x" * 5000, "a\0b", "\udcff"):
        with pytest.raises(UserError, match=r"is not a path|does not exist"):
            load_pretrained(value)
    with pytest.raises(UserError, match=r"config.data.directory=s3://a: URLs are not supported, except gs://: mount"):
        from_config_dict({"data": {"directory": "s3://a"}})
    with pytest.raises(UserError, match=r"config.data.input=gs://a/b: URLs are not supported: mount"):
        from_config_dict({"data": {"input": "gs://a/b"}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["x" * 300, "y/" * 3000, "a\0b", "~nobody-of-this-name/x"])
def test_a_name_that_no_file_can_have_matches_no_file(value: str):
    with pytest.raises(UserError, match="matches no file"):
        find_sources(value)
    with pytest.raises(UserError):
        local_path("x" * 300, name="--out")


def test_a_file_whose_name_is_not_utf8_is_read_and_its_name_can_be_printed(tmp_path: Path):
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"\xff\xfe.txt")).write_text("A river. It was measured.\n")
    (document,) = read_documents(str(tmp_path))
    assert document.sentences == ["A river.", "It was measured."]
    message = str(UserError(f"{document.key} \x1b[31mred\x07"))
    message.encode()
    assert message.isprintable()


def test_a_message_stays_a_line_whatever_it_quotes():
    message = str(UserError(f"field is {'x' * 50_000_000!r}: write a number"))
    assert len(message) < 2100
    assert message.startswith("field is 'xxx")
    assert message.endswith("x': write a number")


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0.0, -1.0, 1e300])
def test_a_time_limit_that_is_no_number_of_seconds_is_refused(seconds: float):
    with pytest.raises(UserError, match=r"^--host_timeout=.*: must be a number of seconds"):
        start(seconds=seconds)


@pytest.mark.parametrize("port", ["65536", "99999999999999999999", "-1", "0", "", "x", "8476.0"])
def test_a_port_that_is_none_is_refused_before_anything_is_sent(port: str):
    with pytest.raises(UserError, match="write HOST:PORT with a port from 1 to 65535"):
        gather_names(f"127.0.0.1:{port}", index=1, count=2, seconds=0.1)


@pytest.mark.parametrize(("limit", "is_enough"), [(1 << 30, False), (2 << 30, False), (64 << 40, True), (-1, True)])
def test_a_small_address_space_is_told_before_jax_hangs(monkeypatch: pytest.MonkeyPatch, limit: int, is_enough: bool):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    if is_enough:
        limits.check_address_space()
    else:
        with pytest.raises(
            UserError, match=r"^memory is short: the limit on address space \(ulimit -v\) is [12]\.\d GB"
        ):
            limits.check_address_space()
        with pytest.raises(UserError, match=r"^memory is short: "):
            prepare_environment()  # of `plan`, whose compiler aborts


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "file.npy", np.zeros(1))
    for value, reason in (
        (tmp_path / "folder", "this is a folder: name a file in it"),
        (tmp_path / "none" / "x", r"cannot be written \(there is no folder"),
        (tmp_path / "file.npy" / "x", r"cannot be written \(there is no folder"),
    ):
        with pytest.raises(UserError, match=f"^--output=.*{reason}"):
            check_output(str(value))
    check_output(str(tmp_path / "new"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # of a disk that is mounted read-only
    with pytest.raises(UserError, match=r"^--output=.*: cannot be written \(.* is read-only\)"):
        check_output(str(tmp_path / "new"))


def test_an_output_that_is_a_link_to_itself_is_one_line(tmp_path: Path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.txt").write_text(f"A river was here {number}. It was long. It was old.\n" * 20)
    with pytest.raises(UserError, match=r"loop: .*: choose an --out that you may write to"):
        build_dataset(DataConfig(input=str(tmp_path / "in")), out=loop, max_seq_lengths=(32,), vocab_size=60)
