"""A model on disk: a folder with config.json (class and configuration) and model.safetensors (state dict)."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import types
import typing
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

__all__ = ["config_from_dict", "config_to_dict", "load_folder", "save_folder"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def config_to_dict(config) -> dict:
    """A configuration dataclass as plain JSON values, nested ones too."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_from_dict(kind: type, values: dict):
    """The dataclass ``kind`` from config_to_dict's output; an unknown or missing key is an error that names it."""
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} must be a JSON object, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; it has {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        for option in typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],):
            if dataclasses.is_dataclass(option) and value is not None:
                value = config_from_dict(option, value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{kind.__name__} in {CONFIG} is incomplete or malformed: {error}") from None


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_folder(folder: str | os.PathLike, model: str, config: dict, tensors: dict[str, Tensor]) -> None:
    """Writes config.json and model.safetensors into ``folder``, which is made where it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(folder / WEIGHTS, safetensors.torch.save(contiguous))
    text = json.dumps({"model": model, "config": config}, indent=2) + "\n"
    write_whole(folder / CONFIG, text.encode())


def load_folder(folder: str | os.PathLike) -> tuple[str, dict, dict[str, Tensor]]:
    """The class name, the configuration and the tensors of a folder that save_folder wrote.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        ValueError: a file of it is not what it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at {folder}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    try:
        description = json.loads((folder / CONFIG).read_text())
        model, config = description["model"], description["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is not a fastwave configuration: {error!r}") from None
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{folder / WEIGHTS} is not a safetensors file (a pickle is never read): {error}") from None
    return model, config, tensors
