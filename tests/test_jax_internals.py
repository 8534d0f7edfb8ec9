"""The private names of jax and Orbax still mean what they did; where one is missing, a run says so or does without."""

import hashlib
import importlib
import logging
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from jax._src import cache_key, clusters
from jax._src import distributed as jax_distributed

from bert_jax import jax_internals
from bert_jax.errors import UserError
from bert_jax.parallel import distributed

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not jax_internals.has_useless_libtpu(), reason="needs the plan extra (libtpu), and no TPU")
def test_a_command_is_silent_where_libtpu_is_installed_and_there_is_no_tpu():
    # Pallas first: without it jax does not load libtpu at all.
    main = "def main():\n  from jax.experimental.pallas import tpu\n  import jax\n  print(jax.default_backend())\n"
    program = f"{main}from bert_jax import cli\ncli.run(main)"
    names = ("JAX_PLATFORMS", *jax_internals._WITHOUT_METADATA)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("cpu\n", "")


@pytest.mark.parametrize("subject", jax_internals.LOGGERS)
def test_the_loggers_that_are_quieted_are_those_that_jax_writes_to(subject: str):
    name = jax_internals.LOGGERS[subject]
    logger = importlib.import_module(name).logger
    assert logger.name == name
    before = logger.level
    try:
        jax_internals.quiet(subject)
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(before)


STORE = """
import jax, socket
from bert_jax import jax_internals
assert jax_internals.key_value_client() is None
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"localhost:{port}", num_processes=1, process_id=0, cluster_detection_method="deactivate")
client = jax_internals.key_value_client()
client.key_value_set("topic/0", "a", allow_overwrite=True)
client.key_value_set("topic/0", "b", allow_overwrite=True)
client.key_value_set("once/value", "first")
try:
    client.key_value_set("once/value", "second")
except RuntimeError:
    print("refused")
print(client.key_value_dir_get("topic/"), client.key_value_dir_get("once/"), client.key_value_dir_get("nothing/"))
"""


def test_the_key_value_store_overwrites_lists_and_refuses_as_hosts_rely_on():
    done = subprocess.run([sys.executable, "-c", STORE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["refused", "[('topic/0', 'b')] [('once/value', 'first')] []"]


def test_without_a_key_value_store_hosts_get_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(jax_distributed, "global_state")
    with pytest.raises(
        UserError, match=rf"jax {jax.__version__} has moved its key-value store, .*install jax"
    ) as error:
        jax_internals.key_value_client()
    assert "\n" not in str(error.value)


def test_hosts_are_detected_as_jax_detects_them(monkeypatch: pytest.MonkeyPatch):
    """Slurm's variables stand for all of jax's kinds of cluster."""
    slurm = {"JOB_ID": "77", "NTASKS": "3", "PROCID": "2", "LOCALID": "0", "STEP_NODELIST": "host[1-3]"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    address, count, index, _ = jax_internals.detect_hosts(seconds=1)
    assert str(address).startswith("host1:")
    assert (count, index) == (3, 2)


def test_without_a_search_for_hosts_one_host_runs_and_several_are_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert distributed.start(seconds=1).count == 1
    assert "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID" in capsys.readouterr().err
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", jax_internals.QUIET_HOSTNAME)  # says nothing about hosts
    assert distributed.start(seconds=1).count == 1
    assert "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID" in capsys.readouterr().err
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    with pytest.raises(UserError, match="has moved its detection of hosts"):
        distributed.start(seconds=1)


def test_cpu_hosts_share_programs_whichever_devices_are_theirs(monkeypatch: pytest.MonkeyPatch):
    for name in ("_hash_accelerator_config", "_hash_devices"):
        monkeypatch.setattr(cache_key, name, getattr(cache_key, name))  # put back afterwards
    assert jax_internals.share_programs_between_cpu_hosts()

    def key(devices: list[Any]) -> str:
        digest = hashlib.sha256()
        cache_key._hash_accelerator_config(digest, np.array(devices))
        return digest.hexdigest()

    first, other = (types.SimpleNamespace(device_kind="cpu", process_index=index) for index in range(2))
    assert key([first, other]) == key([other, first])
    assert key([first]) != key([types.SimpleNamespace(device_kind="TPU v5 lite")])


def test_the_devices_part_of_a_program_key_is_the_one_that_is_replaced(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    real = cache_key._hash_accelerator_config
    monkeypatch.setattr(cache_key, "_hash_accelerator_config", lambda *given: asked.append(given) or real(*given))
    jax.jit(lambda x: x * 3 + len(asked)).lower(1.0).compile()  # the tests have a compilation cache (conftest.py)
    assert asked


@pytest.mark.parametrize("name", ["_hash_accelerator_config", "_hash_devices"])
def test_without_the_key_of_a_program_each_cpu_host_compiles_for_itself(monkeypatch: pytest.MonkeyPatch, name: str):
    before = cache_key._hash_accelerator_config
    monkeypatch.delattr(cache_key, name)
    assert not jax_internals.share_programs_between_cpu_hosts()
    assert getattr(cache_key, "_hash_accelerator_config", before) is before


def test_a_read_that_orbax_gave_up_is_known_by_its_coroutine():
    from orbax.checkpoint._src.serialization import serialization

    read = cast(Any, serialization._read_array_index_and_device_put)
    code = read.__code__
    named = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    coroutine = read(*[None] * code.co_argcount, **dict.fromkeys(named))

    def event(source: Any, error: Exception | None = None) -> Any:
        return types.SimpleNamespace(object=source, exc_value=error)

    try:
        assert jax_internals.is_abandoned_read(event(coroutine))
    finally:
        coroutine.close()
    assert jax_internals.is_abandoned_read(event(None, RuntimeError("Event loop is closed")))
    assert not jax_internals.is_abandoned_read(event(test_a_read_that_orbax_gave_up_is_known_by_its_coroutine))


def test_unfinished_checkpoints_have_the_name_that_is_cleaned_up():
    from orbax.checkpoint._src.path import atomicity_types

    assert jax_internals.UNFINISHED_CHECKPOINT == atomicity_types.TMP_DIR_SUFFIX
