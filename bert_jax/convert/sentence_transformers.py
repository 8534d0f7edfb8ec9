"""The files of a sentence-transformers model: where its encoder is, and how embeddings are made of its outputs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.convert.safetensors_file import read_safetensors, write_safetensors
from bert_jax.convert.tokenizer_files import read_max_length
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.json_files import load_json, read_json

MODULES = "modules.json"
POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("Tanh", "Identity", "ReLU", "GELU", "Sigmoid")
# The fields of 1_Pooling/config.json before `pooling_mode`, in the order in which several modes are concatenated.
_MODE_FIELDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_LENGTH_FILES = ("bert", "distilbert", "roberta", "camembert", "albert", "xlm-roberta", "xlnet")


@dataclasses.dataclass(frozen=True)
class Dense:
    """A linear layer after the pooling: `activation(x @ kernel + bias)`."""

    kernel: np.ndarray
    bias: np.ndarray
    activation: str


@dataclasses.dataclass(frozen=True)
class EmbeddingSettings:
    """How a sentence-transformers model makes an embedding of a text.

    Attributes:
      poolings: the poolings of the last layer, concatenated.
      normalize: whether the embedding is scaled to length 1.
      layers: linear layers between the two.
      max_seq_length: tokens of a text, [CLS] and [SEP] included; 0 if only the positions limit it.
      lowercase: whether text is lower-cased before the tokenizer.
      prompt: the text put before every text, and its name.
      prompts: other texts to put before a text, by the name that chooses one ("query", "document").
      similarity: how embeddings are compared, "cosine" or "dot".
      unsupported: a module or pooling that cannot be computed here, "" if there is none.
    """

    poolings: tuple[str, ...] = ("mean",)
    normalize: bool = False
    layers: tuple[Dense, ...] = ()
    max_seq_length: int = 0
    lowercase: bool = False
    prompt: str = ""
    prompt_name: str = "default"
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    similarity: str = "cosine"
    unsupported: str = ""

    def describe(self) -> str:
        """Return the settings in a few words."""
        length = f", at most {self.max_seq_length} tokens" if self.max_seq_length else ""
        layers = f", {len(self.layers)} dense layers" if self.layers else ""
        prompt = f", after the prompt {self.prompt[:40]!r}" if self.prompt else ""
        names = [name for name, text in self.prompts.items() if text]
        prompt += f", prompts {', '.join(names)}" if names else ""
        scale = ", length 1" if self.normalize else ", not normalized"
        return f"pooling {'+'.join(self.poolings)}{layers}{scale}{length}{prompt}"

    def size(self, hidden_size: int) -> int:
        """Return the size of an embedding."""
        return self.layers[-1].kernel.shape[1] if self.layers else hidden_size * len(self.poolings)

    def truncated(self, size: int, *, hidden_size: int, option: str) -> "EmbeddingSettings":
        """Return the settings for the first `size` numbers of embeddings (Matryoshka), scaled to length 1 after that.

        The truncation is a linear layer of ones and zeros, which is exact and which every reader of the format knows.

        Raises:
          UserError: if embeddings are not longer; `option` names the option.
        """
        whole = self.size(hidden_size)
        if not 0 < size < whole:
            raise UserError(f"{option}={size}: embeddings have {whole} numbers: give a smaller number")
        layer = Dense(np.eye(whole, size, dtype=np.float32), np.zeros(size, np.float32), "Identity")
        return dataclasses.replace(self, layers=(*self.layers, layer))

    def prompt_called(self, name: str) -> str:
        """Return the text of a prompt; the default one for an empty name.

        Raises:
          UserError: if the model has no prompt of this name.
        """
        texts = {"": self.prompt, **({self.prompt_name: self.prompt} if self.prompt else {}), **self.prompts}
        if name not in texts:
            known = ", ".join(filter(None, texts)) or "none"
            raise UserError(f"prompt={name!r}: the prompts of the model are: {known}: choose one, or omit it")
        return texts[name]


def recorded_settings(record: Mapping[str, Any]) -> EmbeddingSettings | None:
    """Return the settings in the metadata of an embedder's checkpoint; None for another model's."""
    if "embedding" not in record:
        return None
    fields = {field.name for field in dataclasses.fields(EmbeddingSettings)}
    values: dict[str, Any] = {name: value for name, value in record["embedding"].items() if name in fields}
    values["poolings"] = tuple(values["poolings"])
    return EmbeddingSettings(**values)


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the encoder in a sentence-transformers folder, which is `folder` itself in later versions.

    Raises:
      UserError: if its modules.json is damaged.
    """
    modules = _modules(folder)
    first = modules[0]["path"] if modules else ""
    return folder / first if first and (folder / first).is_dir() else folder


def embedding_settings(folder: Path) -> EmbeddingSettings | None:
    """Return the settings of a sentence-transformers model whose encoder is in `folder`; None for other models.

    Raises:
      UserError: if one of its files is damaged.
    """
    for root in (folder, folder.parent):
        try:
            modules = _modules(root)
        except UserError:
            if root == folder:
                raise
            continue  # the parent may be any folder, and its file another program's
        if modules and root / modules[0]["path"] == folder:
            return _settings(root, folder, modules)
    return None


def _modules(folder: Path) -> list[dict[str, str]]:
    file = folder / MODULES
    if not file.is_file():
        return []
    try:
        modules = load_json(file)
        result = [{"path": module.get("path", ""), "type": module["type"]} for module in modules]
        if isinstance(modules, list) and all(
            isinstance(value, str) and ".." not in value for module in result for value in module.values()
        ):
            return result
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise UserError(f"{file}: must be a list of modules with path and type: restore the file")


def _settings(root: Path, folder: Path, modules: list[dict[str, str]]) -> EmbeddingSettings:
    values: dict[str, Any] = _text_settings(root, folder)
    layers: list[Dense] = []
    for position, module in enumerate(modules):
        name, directory = module["type"].rpartition(".")[2], root / module["path"]
        if position == 0 and name in ("Transformer", "BERT"):
            continue
        if position == 1 and name == "Pooling":
            poolings, problem = _poolings(directory / "config.json")
            if problem:
                return EmbeddingSettings(**values, unsupported=f"{module['path']} ({problem})")
            values["poolings"] = poolings
        elif name == "Dense" and position > 1 and not values.get("normalize"):
            layer = _dense(directory)
            if layer is None:
                return EmbeddingSettings(**values, unsupported=f"{module['path']} ({name})")
            layers.append(layer)
        elif name == "Normalize" and position > 1:
            values["normalize"] = True
        elif name != "Dropout":  # which does nothing at prediction
            return EmbeddingSettings(**values, unsupported=f"{module['path']} ({name})")
    return EmbeddingSettings(**values, layers=tuple(layers))


def _text_settings(root: Path, folder: Path) -> dict[str, Any]:
    settings: Mapping[str, Any] = {}
    for name in _LENGTH_FILES:
        file = folder / f"sentence_{name}_config.json"
        if file.is_file():
            settings = read_json(file)
            break
    length = settings.get("max_seq_length")
    if length is None:
        length = read_max_length(folder) or None
    if length is not None and (type(length) is not int or length < 3):
        raise UserError(f"{file}: max_seq_length is {str(length)[:20]}: write a whole number from 3")
    values: dict[str, Any] = {"max_seq_length": length or 0, "lowercase": settings.get("do_lower_case") is True}
    file = root / "config_sentence_transformers.json"
    if file.is_file():
        prompts = read_json(file)
        names, default = prompts.get("prompts") or {}, prompts.get("default_prompt_name")
        prompt = names.get(default, "") if isinstance(names, Mapping) and isinstance(default, str | None) else None
        if not isinstance(prompt, str):
            raise UserError(f"{file}: default_prompt_name must be the name of a text in prompts: restore the file")
        others = {name: text for name, text in names.items() if name != default and isinstance(text, str)}
        values |= {"prompt": prompt, "prompts": others, "prompt_name": default or "default"}
        values["similarity"] = "dot" if prompts.get("similarity_fn_name") == "dot" else "cosine"
    return values


def _poolings(file: Path) -> tuple[tuple[str, ...], str]:
    """Return the poolings, and what of them cannot be computed here, "" if all can."""
    fields = read_json(file)
    modes = fields.get("pooling_mode") or [mode for name, mode in _MODE_FIELDS.items() if fields.get(name)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not set(map(str, modes)) <= set(POOLINGS):
        return (), f"pooling_mode {'+'.join(map(str, modes)) if isinstance(modes, list) else modes}"[:80]
    if fields.get("include_prompt") is False:
        return (), "include_prompt=false"
    return tuple(modes), ""


def _dense(folder: Path) -> Dense | None:
    """Return the layer of a folder, None if it computes something else or its weights are not safetensors."""
    fields, file = read_json(folder / "config.json"), folder / "model.safetensors"
    activation = str(fields.get("activation_function") or "Identity").rpartition(".")[2]
    plain = fields.get("module_input_name", "sentence_embedding") == "sentence_embedding"
    if activation not in ACTIVATIONS or fields.get("use_residual") or not plain or not file.is_file():
        return None
    tensors = read_safetensors(file)
    weight = tensors.get("linear.weight")
    if weight is None or weight.ndim != 2:
        raise UserError(f"{file}: contains no matrix linear.weight: copy the folder again")
    bias = tensors.get("linear.bias", np.zeros(len(weight), np.float32))
    return Dense(weight.astype(np.float32).T, bias.astype(np.float32), activation)


def write_sentence_transformers_files(folder: Path, *, model: ModelConfig, settings: EmbeddingSettings) -> None:
    """Write modules.json, a folder per module and two configs: embeddings as in `predict --task=embed`."""
    names = ["Pooling", *["Dense"] * len(settings.layers), *["Normalize"] * settings.normalize]
    modules = [("", "Transformer"), *((f"{index}_{name}", name) for index, name in enumerate(names, start=1))]
    prompts = {**({settings.prompt_name: settings.prompt} if settings.prompt else {}), **settings.prompts}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(modules)
        ],
        "sentence_bert_config.json": {
            "max_seq_length": settings.max_seq_length or model.max_position_embeddings,
            "do_lower_case": settings.lowercase,
        },
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": settings.prompt_name if settings.prompt else None,
            "similarity_fn_name": settings.similarity,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.hidden_size,
            **{field: mode in settings.poolings for field, mode in _MODE_FIELDS.items()},
        },
    }
    if settings.normalize:
        files[f"{modules[-1][0]}/config.json"] = {}
    for layer, (path, _) in zip(settings.layers, modules[2:], strict=False):
        files[f"{path}/config.json"] = _dense_fields(layer)
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, value, indent=2)
    for layer, (path, _) in zip(settings.layers, modules[2:], strict=False):
        tensors = {"linear.weight": np.ascontiguousarray(layer.kernel.T), "linear.bias": layer.bias}
        write_safetensors(folder / path / "model.safetensors", tensors)


def _dense_fields(layer: Dense) -> dict[str, Any]:
    inputs, outputs = layer.kernel.shape
    kind = "linear" if layer.activation == "Identity" else "activation"
    activation = f"torch.nn.modules.{kind}.{layer.activation}"
    return {"in_features": inputs, "out_features": outputs, "bias": True, "activation_function": activation}
