"""The additional files of a sentence-transformers model: encoder, pooling, normalization to unit length."""

from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.files import write_json

POOLINGS = ("mean", "cls")


def write_sentence_transformers_files(folder: Path, *, model: ModelConfig, pooling: str) -> None:
    """Write modules.json, 1_Pooling/, 2_Normalize/ and two configs.

    An embedding is the `pooling` of the token vectors, scaled to length 1, as in `predict --task=embed`.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": model.max_position_embeddings, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.hidden_size,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "2_Normalize/config.json": {},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, value, indent=2)
