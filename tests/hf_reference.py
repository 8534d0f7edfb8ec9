"""Hold HuggingFace's BERT beside ours: random weights, and a mapping written out by hand.

The mapping owes nothing to `bert_jax.convert`: it is what the converter is measured against. Import torch before this.
"""

import warnings
from typing import Any

import numpy as np
import torch
import transformers

from bert_jax.config import ModelConfig


def make_reference(model: ModelConfig, *, seed: int = 0) -> Any:
    """Return a `BertForPreTraining` of `model`'s shape with random weights, without dropout."""
    config = transformers.BertConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=model.max_position_embeddings,
        type_vocab_size=model.type_vocab_size,
        hidden_act=model.hidden_act,
        layer_norm_eps=model.layer_norm_eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=model.attention_direction == "left_to_right",
        use_cache=False,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]  # an option that its **kwargs take
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = transformers.BertForPreTraining(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("LayerNorm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(0.04 * noise)
    return reference.eval()


def weights(reference: Any) -> dict[str, np.ndarray]:
    """Return copies of the reference's parameters by HuggingFace's names; tied ones once."""
    return {name: parameter.detach().numpy().copy() for name, parameter in reference.named_parameters()}


def weight_gradients(reference: Any) -> dict[str, np.ndarray]:
    """Return the gradients by HuggingFace's names, 0 where there is none."""
    return {
        name: np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy().copy()
        for name, parameter in reference.named_parameters()
    }


def ours_from(named: dict[str, np.ndarray], *, layers: int) -> dict[str, Any]:
    """Return our tree for arrays by HuggingFace's names: PyTorch keeps kernels as [out, in], we as [in, out]."""

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": named[f"{name}.weight"].T, "bias": named[f"{name}.bias"]}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": named[f"{name}.weight"], "bias": named[f"{name}.bias"]}

    def layer(index: int) -> dict[str, Any]:
        at = f"bert.encoder.layer.{index}"
        return {
            "query": dense(f"{at}.attention.self.query"),
            "key": dense(f"{at}.attention.self.key"),
            "value": dense(f"{at}.attention.self.value"),
            "attention_output": dense(f"{at}.attention.output.dense"),
            "attention_layer_norm": norm(f"{at}.attention.output.LayerNorm"),
            "intermediate": dense(f"{at}.intermediate.dense"),
            "output": dense(f"{at}.output.dense"),
            "output_layer_norm": norm(f"{at}.output.LayerNorm"),
        }

    def stack(trees: list[Any]) -> Any:
        if isinstance(trees[0], dict):
            return {key: stack([tree[key] for tree in trees]) for key in trees[0]}
        return np.stack(trees)

    tables = "bert.embeddings"
    return {
        "encoder": {
            "embeddings": {
                "word_embeddings": named[f"{tables}.word_embeddings.weight"],
                "position_embeddings": named[f"{tables}.position_embeddings.weight"],
                "token_type_embeddings": named[f"{tables}.token_type_embeddings.weight"],
                "layer_norm": norm(f"{tables}.LayerNorm"),
            },
            "layers": stack([layer(index) for index in range(layers)]),
        },
        "pooler": {"dense": dense("bert.pooler.dense")},
        "masked_lm": {
            "transform": dense("cls.predictions.transform.dense"),
            "layer_norm": norm("cls.predictions.transform.LayerNorm"),
            "bias": named["cls.predictions.bias"],
        },
        "next_sentence": {"dense": dense("cls.seq_relationship")},
    }
