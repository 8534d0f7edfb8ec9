"""The Colab notebook: small, without outputs, and running from top to bottom on a CPU."""

import base64
import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the notebook extra")

NOTEBOOK = Path(__file__).parent.parent / "launch" / "colab_tpu.ipynb"
MOST_BYTES = 20_000
MOST_SECONDS = 1_800  # of one cell; the whole notebook took 4 minutes on two cores that did other work beside
PNG = b"\x89PNG\r\n"


def outputs_of(notebook, source):
    """Return the outputs of the cell that contains `source`."""
    return next(cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source).outputs


def text_of(outputs):
    """Return what a cell printed."""
    return "".join(output.get("text", "") for output in outputs)


def test_the_notebook_is_valid_small_and_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


@pytest.mark.soak
def test_the_notebook_runs_from_top_to_bottom_on_a_cpu(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the notebook extra")
    pytest.importorskip("ipykernel", reason="needs the notebook extra")
    pytest.importorskip("matplotlib", reason="needs the notebook extra")
    for name, value in {"BERT_JAX_INSTALLED": "1", "BERT_JAX_FOLDER": str(tmp_path / "work")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=MOST_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    nbformat.write(notebook, tmp_path / "executed.ipynb")

    assert "finished: 600 steps" in text_of(outputs_of(notebook, "bert_jax.train"))
    assert "The model beats word frequencies" in text_of(outputs_of(notebook, "bert_jax.train"))
    pictures = [output.data["image/png"] for output in outputs_of(notebook, "plt.show") if "data" in output]
    assert len(pictures) == 1
    picture = base64.b64decode(pictures[0])
    assert picture.startswith(PNG)
    (tmp_path / "curves.png").write_bytes(picture)
    assert text_of(outputs_of(notebook, "fill_mask(text")).count("[MASK]") == 2
    assert "model.safetensors" in text_of(outputs_of(notebook, "bert_jax.export"))
