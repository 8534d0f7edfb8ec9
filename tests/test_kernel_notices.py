"""A kernel that this jax or chip cannot run is reported when a command starts, and its plain form computes."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny_model import tiny_config, tiny_model

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.finetuning import finetune
from bert_jax.model import chip, residual_norm
from bert_jax.model.attention import AttentionMask, Projected, attend
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.model.kernels import backends
from bert_jax.planning import report as planning
from bert_jax.planning.topology import parse_topology
from bert_jax.prediction import model as prediction
from bert_jax.pretrain import evaluate_pretrained, run
from tests.runs import ROOT, environment

BFLOAT16: Any = {"dtype": "bfloat16", "implementation": "auto"}
LINE = "kernels: a line about what is missing"


def on_gpu(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    device = types.SimpleNamespace(device_kind="NVIDIA", compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(chip, "_has_kernels", chip._has_kernels.__wrapped__)


def test_a_jax_without_pallas_for_gpus_is_one_line_that_names_kernel_replacement_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
):
    on_gpu(monkeypatch, "9.0")
    assert kernel_notices(**BFLOAT16) == []
    assert chip.is_gpu()
    monkeypatch.setitem(sys.modules, backends.GPU.module, None)
    (line,) = kernel_notices(**BFLOAT16)
    assert not chip.is_gpu()
    assert "\n" not in line
    for part in (f"jax {jax.__version__} has no {backends.GPU.module}", "attention", "norm", "plain forms", "pip inst"):
        assert part in line
    assert kernel_notices(dtype="float32", implementation="auto") == []
    assert kernel_notices(dtype="bfloat16", implementation="reference") == []


def test_a_name_that_moved_counts_as_missing(monkeypatch: pytest.MonkeyPatch):
    on_gpu(monkeypatch, "9.0")
    monkeypatch.setitem(sys.modules, backends.GPU.module, types.ModuleType("triton"))
    assert f"has no {backends.GPU.module}.CompilerParams" in kernel_notices(**BFLOAT16)[0]


def test_an_old_gpu_is_reported_by_its_compute_capability(monkeypatch: pytest.MonkeyPatch):
    on_gpu(monkeypatch, "7.5")
    assert "compute capability is 7.5, and 8.0 (Ampere) is the least" in kernel_notices(**BFLOAT16)[0]


def test_a_cpu_lacks_nothing_and_a_tpu_is_reported():
    assert kernel_notices(**BFLOAT16) == []
    assert kernel_notices(**BFLOAT16, backend="tpu") == []


def test_without_pallas_for_tpus_plain_forms_are_lowered_and_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chip, "_device_kind", lambda: "TPU v5 lite")

    def kernels() -> int:
        ones, place = jnp.ones((2, 128, 2, 64)), jnp.broadcast_to(jnp.arange(128), (2, 128))
        mask = AttentionMask(jnp.ones((2, 128), jnp.int32), place, direction="bidirectional")
        rest: dict[str, Any] = {"mask": mask, "dropout": None, "rate": 0.0, "site": 1, "implementation": "auto"}

        def both(x: jax.Array) -> jax.Array:
            attended = attend(Projected(x), key=Projected(x), value=Projected(x), **rest).reshape(2, 128, 128)
            weights = jnp.ones(128)
            norm: dict[str, Any] = {"eps": 1e-12, "dropout": None, "rate": 0.0, "site": 2, "plain": False}
            sublayer = residual_norm.Sublayer(attended, weights)
            return residual_norm.residual_norm(sublayer, hidden=attended, scale=weights, bias=weights, **norm).sum()

        lowered = jax.jit(jax.grad(both)).trace(ones).lower(lowering_platforms=("tpu",))
        return lowered.as_text().count("tpu_custom_call")

    assert kernels() > 0
    monkeypatch.setitem(sys.modules, backends.TPU.module, None)
    assert kernels() == 0
    (line,) = kernel_notices(**BFLOAT16, backend="tpu")
    assert f"has no {backends.TPU.module}" in line


def test_without_pallas_for_tpus_the_package_is_imported_all_the_same():
    code = (
        f"import sys; sys.modules[{backends.TPU.module!r}] = None; import bert_jax.pretrain.run as r; print(r.__name__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout == "bert_jax.pretrain.run\n", done.stderr


def start_training(tmp_path: Path, report: Callable[[str], None]) -> None:
    del report
    run.pretrain(tiny_config(), workdir=tmp_path / "run")


def start_fine_tuning(tmp_path: Path, report: Callable[[str], None]) -> None:
    del report
    request = finetune.Request(init="anything", workdir=str(tmp_path / "run"))
    finetune.finetune(FinetuneConfig(), request=request)


def start_evaluating(tmp_path: Path, report: Callable[[str], None]) -> None:
    evaluate_pretrained.evaluate_pretrained(tmp_path, report=report)


def start_predicting(tmp_path: Path, report: Callable[[str], None]) -> None:
    prediction.load(tmp_path, report=report)


@pytest.mark.parametrize(
    ("module", "start"),
    [
        (run, start_training),
        (finetune, start_fine_tuning),
        (evaluate_pretrained, start_evaluating),
        (prediction, start_predicting),
    ],
)
def test_every_command_that_computes_reports_them_when_it_starts(
    module: Any, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop() -> None:
        raise UserError("far enough")

    source = PretrainedModel(tmp_path, "huggingface", tiny_model(), "BertModel", {}, "float32", tokenizer=None)
    monkeypatch.setattr(PretrainedModel, "require_tokenizer", lambda self: None)
    monkeypatch.setattr(module, "kernel_notices", lambda **facts: [LINE])
    if module is not run:
        load = "load_initial" if module is finetune else "load_pretrained"
        monkeypatch.setattr(module, load, lambda *arguments, **rest: source)
    for name in ("open_runtime", "_open", "Model", "_directory"):
        monkeypatch.setattr(module, name, lambda *arguments, **rest: stop(), raising=False)
    with pytest.raises(UserError, match="far enough"):
        start(tmp_path, print)
    assert capsys.readouterr().out.splitlines()[-1] == LINE


def test_a_plan_notes_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planning, "kernel_notices", lambda **facts: [LINE] if facts["backend"] == "tpu" else [])
    topology = parse_topology("v5e:2x2")
    assert LINE in planning._notes(tiny_config(), topology=topology, part=topology)
