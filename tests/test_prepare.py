import json
import math
import os
import pkgutil
import shlex
import signal
import subprocess
import sys
import time

import pytest
from text_corpus import make_documents, write_corpus, write_vocabulary

import bert_jax.data
from bert_jax.data.builder import load_dataset_info
from tests import runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    write_vocabulary(folder)
    return write_corpus(folder / "text", make_documents(60))


TWO_STEPS = ("train.num_steps=2", "optimizer.warmup_steps=1", "eval.max_examples=8", "train.batch_size=8")


def prepare(*flags):
    command = [sys.executable, "-m", "bert_jax.prepare", *map(str, flags)]
    return runs.run(command)


def test_prepare_makes_a_data_set_says_what_is_in_it_and_has_nothing_to_do_twice(corpus, tmp_path):
    flags = [f"--input={corpus}/*.txt", f"--out={tmp_path / 'out'}", f"--vocab={corpus.parent}", "--num_workers=1"]
    first = prepare(*flags, "--max_seq_length=32,64")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("estimate: ")
    assert "documents: " in first.stdout
    again = prepare(*flags, "--max_seq_length=32,64")
    assert again.returncode == 0
    complete, epochs, *following = again.stdout.splitlines()
    assert complete == f"data set in {tmp_path / 'out'} is complete, nothing to do"
    rows = load_dataset_info(tmp_path / "out", max_seq_length=32).num_train_rows
    assert epochs.startswith(f"epochs: {math.ceil(rows / 256)} steps of 256 go through the {rows} sequences of ")
    assert epochs.endswith(f"{math.ceil(40 * rows / 256)} steps")
    assert following[0] == "next:"
    commands = [line for line in following if line.startswith("    ")]
    assert f" train --config=configs/colab_tpu.py --config.data.directory={tmp_path / 'out'} " in commands[-1]
    assert "'--config.train.phases[0].max_seq_length=32'" in commands[-1]  # a shell expands brackets
    if len(commands) == 2:  # a CPU
        run_of_two_steps = shlex.split(commands[0])[2:] if "-m" not in commands[0] else shlex.split(commands[0])[3:]
        flags = [f"--workdir={tmp_path / 'run'}", *(f"--config.{field}" for field in TWO_STEPS)]
        done = runs.run([sys.executable, "-m", "bert_jax.train", *run_of_two_steps, *flags])
        assert done.returncode == 0, done.stderr
    assert load_dataset_info(tmp_path / "out", max_seq_length=32).objective == "mlm+nsp"


def test_a_dry_run_says_what_was_found_and_writes_nothing(corpus, tmp_path):
    found = prepare(f"--input={corpus}", "--dry_run")
    assert (found.returncode, found.stderr) == (0, "")
    assert "\nfound: 60 documents" in found.stdout
    assert found.stdout.endswith("dry run: nothing was written\n")
    missing = prepare(f"--input={corpus}")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: --out is missing: ")


def test_every_flag_reaches_the_data_set(corpus, tmp_path):
    done = prepare(
        f"--input={corpus}",
        f"--out={tmp_path / 'out'}",
        "--vocab_size=350",
        "--max_seq_length=40",
        "--objective=mlm+sop",
        "--format=sentences",
        "--text_column=body",
        "--text_key=doc.body",
        "--documents=blank_lines",
        "--strip_accents=yes",
        "--language=de",
        "--nodo_lower_case",
        "--heldout_fraction=0.2",
        "--short_seq_prob=0.3",
        "--pack",
        "--max_instances_per_row=5",
        "--max_instance_length=20",
        "--seed=77",
        "--num_workers=2",
        "--recipe=original",
        "--runner=local",
    )
    assert done.returncode == 0, done.stderr
    info = load_dataset_info(tmp_path / "out", max_seq_length=40)
    assert (info.objective, info.recipe, info.vocab_size, info.do_lower_case) == ("mlm+sop", "original", 350, False)
    assert info.instances_per_row == 5
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["layout"], manifest["inputs"]
    assert manifest == {
        "recipe": "original",
        "words of A": "may continue in B",
        "vocabulary": "learned, 350 pieces",
        "do_lower_case": False,
        "format": "sentences",
        "text_column": "body",
        "text_key": "doc.body",
        "documents": "blank_lines",
        "strip_accents": "yes",
        "language": "de",
        "objective": "mlm+sop",
        "short_seq_prob": 0.3,
        "pack": True,
        "max_instances_per_row": 5,
        "max_instance_length": 20,
        "heldout_fraction": 0.2,
        "seed": 77,
    }


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--input=nowhere/*.txt"], "matches no file"),
        (["--objective=nsp"], "objective"),
        (["--max_seq_length=big"], "--max_seq_length=big: write whole numbers"),
        (["--vocab=nowhere.txt"], "vocabulary nowhere.txt does not exist"),
        (["--vocab_size=10"], "more than vocab_size=10"),
        (["--out=/dev/null/x"], "choose an --out that you may write to"),
        (["--inputs=x"], "inputs"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(corpus, tmp_path, flags, named):
    base = [f"--input={corpus}", f"--out={tmp_path / 'out'}", f"--vocab={corpus.parent}", "--num_workers=1"]
    done = prepare(*base, *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert not (tmp_path / "out" / "bert_pretraining").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume_and_leaves_no_process(corpus, tmp_path):
    many = write_corpus(tmp_path / "text", make_documents(400) * 80, num_files=8)
    flags = [f"--input={many}", f"--out={tmp_path / 'out'}", f"--vocab={corpus.parent}", "--num_workers=2"]
    # What a shell starts in the background ignores SIGINT, and so would all that it starts.
    heard = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", heard, sys.executable, "-m", "bert_jax.prepare", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "work" / "intermediate").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command to resume" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 120  # for the workers to notice
    while _is_there(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_there(process.pid)
    assert prepare(*flags).returncode == 0


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_data_and_the_door_import_neither_jax_nor_tensorflow():
    modules = [f"bert_jax.data.{module.name}" for module in pkgutil.iter_modules(bert_jax.data.__path__)]
    code = f"""
import importlib, sys
for name in {["bert_jax.prepare", *modules]!r}:
    importlib.import_module(name)
print(*sorted({{"jax", "flax", "tensorflow", "torch"}} & set(sys.modules)))
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "\n"
    assert len(modules) > 10


@pytest.mark.filterwarnings("default")  # Beam's own
@pytest.mark.parametrize("packing", [[], ["--pack"]], ids=["plain", "packed"])
def test_beam_makes_the_same_bytes_as_local_processes(corpus, tmp_path, packing):
    pytest.importorskip("apache_beam", reason="needs the beam extra: pip install -e '.[beam]'")
    contents = []
    for name, flags in {
        "local": ["--num_workers=1"],
        "beam": ["--runner=beam", "--beam_options=--runner=DirectRunner"],
    }.items():
        out, vocabulary = f"--out={tmp_path / name}", f"--vocab={corpus.parent}"
        done = prepare(f"--input={corpus}", out, vocabulary, *flags, *packing)
        assert done.returncode == 0, done.stderr
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file() and path.name != ".lock")
        contents.append([(str(path.relative_to(tmp_path / name)), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
