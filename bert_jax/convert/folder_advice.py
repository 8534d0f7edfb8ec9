"""Errors about a path that is not a model of ours: what it is instead, and which path to give."""

from pathlib import Path

from bert_jax.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FORMATS = (
    "a workdir, one of its checkpoints (WORKDIR/checkpoints/STEP), a HuggingFace folder (config.json and "
    "model.safetensors), or the prefix of a TF1 checkpoint (DIR/bert_model.ckpt)"
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
# Weights of other libraries in HuggingFace folders, and the option of transformers 4 that reads them.
_OTHERS = {"tf_model.h5": "from_tf=True", "flax_model.msgpack": "from_flax=True"}
_SHOWN = 3


def no_model(path: Path) -> UserError:
    """Return the error for a path that contains none of the formats that are read."""
    if not path.exists():
        return UserError(f"{path} does not exist: give {FORMATS}")
    if path.is_file():
        return UserError(f"{path} is a file: give {FORMATS}")
    try:
        return UserError(f"{path}: {_inside(path)}")
    except OSError as error:  # a folder in it may not be read
        return UserError(f"{path}: contains no model ({error.strerror or error}): give {FORMATS}")


def has_weights(folder: Path) -> bool:
    """Return whether a folder contains weights of a HuggingFace folder that are read."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def _inside(folder: Path) -> str:
    if snapshots := _snapshots(folder):
        return f"a download cache of HuggingFace, not a model: give the model's folder in it: {_paths(snapshots)}"
    config = _other_config(folder)
    if indexes := sorted(folder.glob("*.index")):
        hint = f"copy {config} to bert_config.json" if config else "copy the model's bert_config.json into the folder"
        return f"contains the TF1 checkpoint {indexes[0].stem} but no bert_config.json: {hint}"
    if has_weights(folder):
        name = WEIGHTS if (folder / WEIGHTS).exists() else INDEX
        hint = f"copy {config} to config.json" if config else "copy the model's config.json into the folder"
        return f"contains {name} but no config.json: {hint}"
    for pattern in _PICKLES:
        if pickles := sorted(folder.glob(pattern)):
            raise UserError(pickle_message(pickles[0]))
    for name, option in _OTHERS.items():
        if (folder / name).exists():
            return (
                f"contains the weights {name}, which are not read: convert them with transformers 4: python -c "
                f"\"from transformers import AutoModelForPreTraining as M; M.from_pretrained('{folder}', {option})"
                f".save_pretrained('{folder}-safetensors')\", then give that folder"
            )
    if (folder / "adapter_config.json").exists():
        return "a PEFT adapter without its model: merge it (PeftModel.merge_and_unload), save, and give that folder"
    if models := _models_below(folder):
        return f"contains no model itself: give a folder in it: {_paths(models)}"
    if (folder / "config.json").exists():
        return f"contains neither {WEIGHTS} nor {INDEX}: give a folder with one of them"
    return f"contains no model: give {FORMATS}"


def pickle_message(file: Path) -> str:
    """Return the error message about a pickle, which says how to convert it."""
    folder, config = file.parent, ""
    if not (folder / "config.json").exists() and (folder / "bert_config.json").exists():
        config = "copy bert_config.json to config.json, and "
    return (
        f"{file}: pickle files are not read, because loading one can run any program: if you trust it, {config}convert "
        'it with torch and transformers installed: python -c "from transformers import BertForPreTraining as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\" (replace BertForPreTraining by the "
        "class of a fine-tuned model), copy the tokenizer's files (vocab.txt, tokenizer*.json) to that folder, and "
        "give it"
    )


def _other_config(folder: Path) -> str:
    """Return the name of a file that is probably the config under another name."""
    names = [file.name for file in sorted(folder.glob("*config*.json")) if not file.name.startswith("tokenizer")]
    return names[0] if len(names) == 1 else ""


def _snapshots(folder: Path) -> list[Path]:
    """Return the models in a cache of HuggingFace's hub: models--OWNER--NAME/snapshots/COMMIT."""
    patterns = ("snapshots/*", "models--*/snapshots/*", "hub/models--*/snapshots/*")
    patterns += ("*",) if folder.name == "snapshots" else ()
    models = [file for pattern in patterns for file in sorted(folder.glob(pattern)) if (file / "config.json").exists()]
    return sorted(models, key=lambda file: -file.stat().st_mtime)


def _models_below(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_dir() and ((file / "config.json").exists() or (file / "checkpoints").is_dir())
    ]


def _paths(folders: list[Path]) -> str:
    more = f" or {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    return ", ".join(map(str, folders[:_SHOWN])) + more
