"""Hold HuggingFace's ModernBERT beside ours: random weights, and a mapping written out by hand.

The mapping owes nothing to `bert_jax.convert`: it is what the converter is measured against. Import torch before this.
"""

from typing import Any

import numpy as np
import torch
import transformers

from bert_jax.config import ModelConfig


def make_reference(model: ModelConfig, *, use: str = "ForMaskedLM", seed: int = 0, **fields: Any) -> Any:
    """Return HuggingFace's class of `model`'s shape with random weights, without dropout."""
    known: dict[str, Any] = dict(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=model.max_position_embeddings,
        hidden_activation=model.hidden_act,
        classifier_activation=model.hidden_act,
        norm_eps=model.layer_norm_eps,
        global_attn_every_n_layers=model.global_attn_every_n_layers,
        local_attention=model.local_attention,
        global_rope_theta=model.global_rope_theta,
        local_rope_theta=model.local_rope_theta,
        classifier_pooling=model.classifier_pooling,
        pad_token_id=0,
        bos_token_id=2,
        cls_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
        attn_implementation="eager",
        **fields,
    )
    config = transformers.ModernBertConfig(**known)
    reference = getattr(transformers, f"ModernBert{use}")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.1 * noise)
    return reference.eval()


def weights(reference: Any) -> dict[str, np.ndarray]:
    """Return copies of the reference's parameters by HuggingFace's names; tied ones once."""
    return {name: parameter.detach().numpy().copy() for name, parameter in reference.named_parameters()}


def weight_gradients(reference: Any) -> dict[str, np.ndarray]:
    """Return the gradients by HuggingFace's names."""
    return {name: parameter.grad.numpy().copy() for name, parameter in reference.named_parameters()}


def ours_from(named: dict[str, np.ndarray], *, layers: int) -> dict[str, Any]:
    """Return our tree for arrays by HuggingFace's names, with the parts that are there."""

    def kernel(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"kernel": rows.T}

    def scale(name: str) -> dict[str, np.ndarray]:
        return {"scale": named[f"{name}.weight"]}

    def layer(index: int) -> dict[str, Any]:
        at = f"model.layers.{index}"
        query, key, value = np.split(named[f"{at}.attn.Wqkv.weight"], 3)
        inner, gate = np.split(named[f"{at}.mlp.Wi.weight"], 2)
        return {
            "query": kernel(query),
            "key": kernel(key),
            "value": kernel(value),
            "attention_output": kernel(named[f"{at}.attn.Wo.weight"]),
            "mlp_layer_norm": scale(f"{at}.mlp_norm"),
            "intermediate": kernel(inner),
            "gate": kernel(gate),
            "output": kernel(named[f"{at}.mlp.Wo.weight"]),
        }

    def stack(trees: list[Any]) -> Any:
        if isinstance(trees[0], dict):
            return {key: stack([tree[key] for tree in trees]) for key in trees[0]}
        return np.stack(trees)

    norms = [scale(f"model.layers.{index}.attn_norm") for index in range(1, layers)]
    tree: dict[str, Any] = {
        "encoder": {
            "embeddings": {
                "word_embeddings": named["model.embeddings.tok_embeddings.weight"],
                "layer_norm": scale("model.embeddings.norm"),
            },
            "layers": {**stack([layer(index) for index in range(layers)]), "attention_layer_norm": stack(norms)},
            "final_layer_norm": scale("model.final_norm"),
        },
        "transform": {"dense": kernel(named["head.dense.weight"]), "layer_norm": scale("head.norm")},
    }
    if "decoder.bias" in named:
        tree["masked_lm"] = {"bias": named["decoder.bias"]}
    if "classifier.weight" in named:
        tree["classifier"] = {**kernel(named["classifier.weight"]), "bias": named["classifier.bias"]}
    return tree
