"""Doors: whatever is wrong on the command line is one line and status 2; a reader that leaves ends them quietly."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax import usage
from bert_jax.config import files as config_files
from tests.runs import ROOT, environment, run

TRAIN = [sys.executable, "-m", "bert_jax.train"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config=configs/tiny_gpu.py"], "there is no file 'configs/tiny_gpu.py'"),
        (["--config", "configs/nothing.py:x"], "there is no file 'configs/nothing.py'"),
        (["--config=configs/encoder_2026.py:foo"], "model preset 'foo': choose one of tiny, mini"),
        (["--config=configs/large_tpu.py:foo"], "one of paper, lamb_64k"),
        (["--config=configs/tiny_cpu.py", "--config.train.phases[3].max_seq_length=64"], "phases[3].max_seq_length"),
        (["--config=configs/tiny_cpu.py", "--config.train.num_steps=abc"], "--config.train.num_steps=abc"),
        (["--config=configs/tiny_cpu.py", "--config.model.hiden_size=8"], "did you mean config.model.hidden_size"),
        (["--config=configs/tiny_cpu.py", "more"], "unexpected argument 'more'"),
        (["--config=configs/tiny_cpu.py", "--nonsense=1"], "nonsense"),
        ([], "--config is missing"),
        (["--config=configs/tiny_cpu.py", "--config.optimizer.lr=1"], "did you mean config.optimizer.learning_rate?"),
        (["--config=configs/tiny_cpu.py", "--config.train.steps=1"], "config.train.num_steps or "),
        (["--config=configs/tinny_cpu.py"], "did you mean configs/tiny_cpu.py?"),
        (["--config=tiny_cpu"], "did you mean configs/tiny_cpu.py?"),
        (["--config=finetune_own:tags"], "did you mean configs/finetune_own.py?"),
        (["--config=configs/tiny_cpu.py", "--workdr=x"], "--workdr: there is no such flag; did you mean --workdir?"),
        (["--config=configs/tiny_cpu.py", "--config.train.batch_size=x"], "batch_size=x: must be a whole number"),
        (["--config=configs/tiny_cpu.py", "--config.model=base"], "default_config(model='base')"),
    ],
    ids=lambda value: value[-1][-24:] if isinstance(value, list) and value else "",
)
def test_a_wrong_command_is_one_line(flags: list[str], says: str):
    done = run([*TRAIN, *flags])
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "flag", "own"),
    [
        ("export", "model", "checkpoint"),
        ("predict", "checkpoint", "model"),
        ("train", "model", "init"),
        ("finetune", "checkpoint", "init"),
        ("distill", "model", "teacher"),
    ],
)
def test_the_flag_of_the_model_in_another_command_is_answered_with_that_of_this_one(command: str, flag: str, own: str):
    done = run([sys.executable, "-m", f"bert_jax.{command}", f"--{flag}=run"])
    assert done.returncode == 2
    assert done.stderr == f"error: --{flag}: there is no such flag; did you mean --{own}? --help lists the flags\n"


def test_a_config_with_a_mistake_in_it_is_one_line(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 +\n")
    done = run([*TRAIN, f"--config={tmp_path / 'broken.py'}"])
    assert done.returncode == 2
    assert "SyntaxError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_value_of_another_type_in_a_config_is_named_by_file_and_line(tmp_path: Path):
    text = "from configs import tiny_cpu\n\n\ndef get_config():\n    config = tiny_cpu.get_config()\n"
    (tmp_path / "typed.py").write_text(f'{text}    config.train.num_steps = "400"\n    return config\n')
    done = run([*TRAIN, f"--config={tmp_path / 'typed.py'}"])
    assert done.returncode == 2
    assert f"{tmp_path / 'typed.py'} line 6: num_steps: expected int, got 400 (str)" in done.stderr


def test_dry_run_shows_mesh_schedule_and_decay_and_stops(tmp_path: Path):
    done = run([*TRAIN, "--config=configs/large_tpu.py", f"--workdir={tmp_path / 'run'}", "--dry_run"])
    assert done.returncode == 0, done.stderr
    assert "336,226,108" in done.stdout  # 335,141,888 of encoder and pooler, and the heads
    assert "0-899999" in done.stdout  # 90 % at 128
    assert "900000-999999" in done.stdout
    assert "9.999e-05" in done.stdout  # 1e-4 is never reached: the original decays from step 0
    assert "layer_norm/scale" in done.stdout
    assert not (tmp_path / "run").exists()


def test_dry_run_fits_80_columns_and_estimates_the_epochs_of_text_that_is_not_built_yet(tmp_path: Path):
    (tmp_path / "a.txt").write_text("A sentence of some words.\n" * 4000)
    fields = [f"--config.data.input={tmp_path / 'a.txt'}", "--config.train.num_steps=300"]
    done = run([*TRAIN, "--config=configs/tiny_cpu.py", *fields, f"--workdir={tmp_path / 'run'}", "--dry_run"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("estimate: ")) <= 80
    assert "sharding" not in done.stdout  # on one device
    assert lines[-3] == "the data set is not built yet; its vocabulary gets at most 1,024 tokens"
    assert re.match(
        r"estimate: 100\.0 kB of text, 461 sequences of 64, .*; less than 1 s with \d+ workers?$", lines[-2]
    )
    # 100,000 bytes are 32,190 tokens at 3.1 each; an instance consumes 0.75 * (61 * 0.95 + 110 / 3.1) of them.
    assert lines[-1] == "phase 0: 300 steps of 32 are about 20.8 epochs of about 461 sequences of 64"


def test_a_reader_that_leaves_ends_the_door_quietly():
    with subprocess.Popen(
        [*TRAIN, "--config=configs/tiny_cpu.py", "--dry_run"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 141


@pytest.mark.parametrize("config", ["configs", "gs://bucket/tiny_cpu.py"])
def test_a_config_that_is_no_file_is_one_line(config: str):
    done = run([sys.executable, "-m", "bert_jax.train", f"--config={config}"])
    assert done.returncode == 2
    assert "is not a file" in done.stderr or "copy the file here" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_long_commands_in_help_are_cut_between_flags_to_be_typed_as_they_are():
    line = "    bert-jax predict --text='" + "a " * 20 + "' --model=MODEL --task=fill_mask --output=FILE"
    shown = usage.cut_command(line)
    assert max(map(len, shown.splitlines())) <= 80
    assert " ".join(shown.replace("\\\n", "").split()) == " ".join(line.split())


@pytest.mark.parametrize("module", ["train", "finetune", "prepare", "predict"])
def test_help_lists_flags_and_config_fields_and_is_no_failure(module: str):
    done = run([sys.executable, "-m", f"bert_jax.{module}", "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert run([sys.executable, "-m", f"bert_jax.{module}", "help"]).stdout == done.stdout
    assert max(map(len, done.stdout.replace(sys.executable, "python").splitlines())) <= 80
    assert "Required" in done.stdout
    assert "repeat this option" not in done.stdout
    assert ".py " not in done.stdout.partition("flags:")[2].replace("configs/", "")  # no pointer to the source
    first_line = (ROOT / "bert_jax" / f"{module}.py").read_text().partition("\n")[0]
    assert " ".join(done.stdout.split()).startswith(first_line.strip('"'))
    assert "  --config\n" in done.stdout or module in ("prepare", "predict")
    assert ("  train.batch_size [" in done.stdout) == (module in ("train", "finetune"))


def test_help_shows_the_values_of_the_config_that_is_named(tmp_path: Path):
    train = [sys.executable, "-m", "bert_jax.train"]
    shown = run([*train, "--config=configs/tiny_cpu.py", "--help"]).stdout
    for line in ("model.vocab_size [1024]", "train.num_steps [2400]", "train.phases[0].max_seq_length [64]"):
        assert f"  {line}\n" in shown
    assert "with the values of configs/tiny_cpu.py:" in " ".join(shown.split())
    assert "distill." not in shown.partition("config fields")[2]  # a group that this config lacks
    override = "--config.train.phases[1].batch_size=64"
    phases = run([*train, "--config=configs/base_tpu.py", override, "--help"]).stdout
    for line in ("train.phases[0].max_seq_length [128, then 512]", "train.phases[0].batch_size [0, then 64]"):
        assert f"  {line}\n" in phases
    (tmp_path / "few.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'train': {'num_steps': 10}})\n"
    )
    few = run([*train, f"--config={tmp_path / 'few.py'}", "--workdir=gs://b/run", "--no_such=1", "--help"])
    assert (few.returncode, few.stderr) == (0, "")
    assert "  train.num_steps [10]\n" in few.stdout
    library = run([*train, "--help"]).stdout
    assert "  train.num_steps [1000000]\n" in library
    assert "with the library's defaults" in library
    assert run([*train, "--help", "--config"]).stdout == library
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 'a'\n")
    for config in (tmp_path / "nowhere.py", tmp_path / "broken.py", "configs/tiny_cpu.py:L-x"):
        done = run([*train, f"--config={config}", "--help"])
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["finetune"],
        ["plan"],
        ["train", "--config=configs/x.py"],
        ["train", "--help"],
        ["train", "--config=configs/tiny_cpu.py", "--help"],
    ],
)
def test_what_needs_no_jax_is_answered_without_importing_it(arguments: list[str]):
    module, *rest = arguments
    watch = "import atexit, runpy, sys; atexit.register(lambda: print('jax' in sys.modules)); "
    watch += f"sys.argv = ['x', *{rest!r}]; runpy.run_module('bert_jax.{module}', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", watch], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_a_config_of_the_package_is_found_from_any_folder_and_names_the_workdir(tmp_path: Path, tiny_dataset: Path):
    fields = ["train.num_steps=2", "model.num_hidden_layers=1", "eval.max_examples=8", "optimizer.warmup_steps=1"]
    fields += ["model.vocab_size=0", f"data.directory={tiny_dataset}"]
    command = [*TRAIN, "--config", "configs/tiny_cpu.py", *(f"--config.{field}" for field in fields)]
    done = run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "workdir: runs/tiny_cpu (--workdir=DIR chooses another)" in done.stdout
    assert (tmp_path / "runs" / "tiny_cpu" / "checkpoints" / "2").is_dir()
    assert "training has already finished" in run(command, cwd=tmp_path).stdout


def test_a_config_argument_is_part_of_the_workdirs_name():
    assert config_files.default_workdir("configs/large_tpu.py:lamb_64k") == "runs/large_tpu-lamb_64k"
    assert config_files.default_workdir("/home/me/my.py") == "runs/my"
