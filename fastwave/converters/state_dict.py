"""What the converters share: checkpoint files, state dicts by the other project's names, and its hyper-parameters.

A converter is a table: our parameter -> the other project's key, written as an expression of four signs.

    "stack.front.*": "first_conv.*"                      * stands for ``weight``, and again for ``bias``
    "stack.skip.{i}.*": "conv_layers.{i}.conv1x1_skip.*"    {i} stands for every layer
    "stack.conv.{i}.weight": "filter.weight | gate.weight"  | puts rows under one another, + adds
    "stack.residual.{i}.*": "res_skip.{i}.*[0/2]"           [0/2] takes the first of two equal parts of its rows
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

__all__ = ["Checkpoint", "Hparams", "expand", "make", "read_hparams"]

# How weight norm names its two tensors, magnitude and direction: torch.nn.utils.weight_norm, and its parametrization.
WEIGHT_NORM = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
COUNTER = "num_batches_tracked"  # of batch normalisation, which nothing reads
LISTED = 20  # keys that an error names


def expand(table: Mapping[str, str], layers: int = 0, ours: str = "", theirs: str = "") -> dict[str, str]:
    """The table with ``*`` and ``{i}`` written out, and prefixes before our keys and before each of theirs."""
    out = {}
    for key, expression in table.items():
        for i in range(layers) if "{i}" in key else (0,):
            for kind in ("weight", "bias") if "*" in key else ("",):
                terms = re.split(r"( [|+] )", expression.replace("{i}", str(i)).replace("*", kind))
                terms[::2] = [theirs + term for term in terms[::2]]
                out[ours + key.replace("{i}", str(i)).replace("*", kind)] = "".join(terms)
    return out


class Checkpoint:
    """The tensors of a checkpoint, by the names they have without weight norm and without ``module.`` before them.

    Args:
        source: a path (.safetensors, or a file of torch.save), or a state dict.
        name: of a state dict, in messages; a file goes by its path.
        inside: keys under one another that the state dict may be found under.

    Attributes:
        beside: what the file holds at the top: the state dict itself, or what it lies under and beside.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint, or one that more than ``torch.load(weights_only=True)`` would read.
    """

    def __init__(
        self,
        source: str | os.PathLike | Mapping[str, Any],
        name: str = "state dict",
        inside: Sequence[str] = ("state_dict",),
    ):
        for value in source.values() if isinstance(source, Mapping) else (source,):
            if isinstance(value, nn.Module):
                raise ValueError(f"{name} must hold a state dict, got a {type(value).__name__}: give its state_dict()")
        self.name = name if isinstance(source, Mapping) else str(source)
        tensors = source if isinstance(source, Mapping) else _read(Path(source))
        self.beside = tensors
        for key in inside:
            if isinstance(tensors, Mapping) and isinstance(tensors.get(key), Mapping):
                tensors = tensors[key]
        if not isinstance(tensors, Mapping) or not tensors:
            got = "an empty one" if isinstance(tensors, Mapping) else type(tensors).__name__
            raise ValueError(f"{self.name} must hold a state dict, got {got}")
        if all(str(key).startswith("module.") for key in tensors):  # torch.nn.DataParallel's
            tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
        self.tensors = tensors
        # what each tensor is made of
        self.parts = {key: (key,) for key in tensors if not str(key).endswith(COUNTER)}
        for kinds in WEIGHT_NORM:
            for key in list(tensors):
                module = str(key).removesuffix(kinds[0])
                parts = tuple(module + kind for kind in kinds)
                if module != key and all(part in tensors for part in parts):
                    for part in parts:
                        del self.parts[part]
                    self.parts[f"{module}weight"] = parts

    def count(self, prefix: str) -> int:
        """How many modules ``prefix0.``, ``prefix1.``, ... there are; 1 where there is none, whose keys are missing."""
        return max(1, len(self.indices(prefix)))

    def indices(self, prefix: str) -> list[int]:
        """The numbers that follow ``prefix`` in the keys."""
        found = (re.match(rf"{re.escape(prefix)}(\d+)\.", str(key)) for key in self.parts)
        return sorted({int(match[1]) for match in found if match})

    def has(self, prefix: str) -> bool:
        return any(str(key).startswith(prefix) for key in self.parts)

    def shape(self, key: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor that has ``ndim`` dimensions."""
        value = self.tensors[self.parts[key][-1]]
        if not isinstance(value, Tensor) or value.ndim != ndim:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{self.name}: {key} must be a tensor of {ndim} dimensions, got {got}")
        return tuple(value.shape)

    def check_keys(self, table: Mapping[str, str], partly: bool = False) -> None:
        """ValueError unless the keys are those of the table; ``partly``: these and any others."""
        terms = [term for expression in table.values() for term in re.split(r" [|+] ", expression)]
        expected = list(dict.fromkeys(_part(term)[0] for term in terms))
        problems = {
            "missing": [key for key in expected if key not in self.parts],
            "unexpected": [str(key) for key in self.parts if key not in expected and not partly],
        }
        parts = []
        for problem, keys in problems.items():
            if keys:
                more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
                parts.append(f"{problem} {', '.join(keys[:LISTED])}{more}")
        if parts:
            raise ValueError(f"{self.name} does not have the keys of its source: {'; '.join(parts)}")

    def take(self, term: str, shape: tuple[int, ...]) -> Tensor:
        """A key's tensor or a part of it, (shape), in float32 on the CPU, its weight norm folded: direction times
        magnitude over its own norm."""
        key, index, count = _part(term)
        shape = (count * shape[0], *shape[1:])
        parts = []
        for part in self.parts[key]:
            value = self.tensors[part]
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{self.name}: {part} must be a tensor of floats, got {got}")
            if not value.isfinite().all():
                raise ValueError(f"{self.name}: {part} must be finite, got NaN or infinity")
            parts.append(value.detach().cpu().double())
        value = parts[-1]
        if value.shape != shape:
            raise ValueError(f"{self.name}: {self.parts[key][-1]} must be {shape}, got {tuple(value.shape)}")
        if len(parts) == 2:
            value = value * (parts[0] / self.norm(key, value, parts[0].shape))
        value = value.float()
        if not value.isfinite().all():
            raise ValueError(f"{self.name}: {key} must be finite in float32, got NaN or infinity")
        return value.chunk(count)[index]

    def norm(self, key: str, direction: Tensor, shape: torch.Size) -> Tensor:
        """The norm of ``direction`` along the dimensions that its magnitude, of ``shape``, does not have."""
        magnitude, name = self.parts[key]
        along = [dim for dim, size in enumerate(shape) if size == 1 and len(shape) == direction.ndim]
        norm = torch.linalg.vector_norm(direction, dim=along or None, keepdim=True)
        if norm.shape != shape:
            raise ValueError(f"{self.name}: {magnitude} must be {tuple(norm.shape)}, got {tuple(shape)}")
        if not norm.all():
            raise ValueError(f"{self.name}: {name} must have a direction in every row, got a row of zeros")
        return norm

    @torch.no_grad()
    def load(self, module: nn.Module, table: Mapping[str, str]) -> None:
        """Fills ``module`` by the table. What the table has and the module has not is a weight that nothing reads."""
        for ours, parameter in module.state_dict().items():
            if ours.endswith(COUNTER):
                continue
            rows = [row.split(" + ") for row in table[ours].split(" | ")]
            shape = (len(parameter) // len(rows), *parameter.shape[1:])
            parameter.copy_(torch.cat([sum(self.take(term, shape) for term in row) for row in rows]))


def _part(term: str) -> tuple[str, int, int]:
    """Key, index and count of ``key[index/count]``; 0 and 1 of a plain key."""
    key, index, count = re.fullmatch(r"(.*?)(?:\[(\d+)/(\d+)\])?", term).groups()
    return key, int(index or 0), int(count or 1)


def _read(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not path.is_file():
        raise ValueError(f"checkpoint must be a file, got {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything, not only what torch and pickle document
        reason = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2].partition(" Check the doc")[0]
        if forbidden := re.search(r"GLOBAL (\S+)", reason):
            raise ValueError(
                f"{path} holds a {forbidden[1]}, and only tensors and plain values are read from a pickle: where it was"
                ' made, torch.save({"state_dict": model.state_dict()}, path)'
            ) from None
        reason = reason[:200] or type(error).__name__
        raise ValueError(f"{path} is not a checkpoint, or a damaged one: {reason}") from None


def make(kind: type[nn.Module], config: Any) -> nn.Module:
    """A module whose initial weights, which ``load`` replaces, cost the caller no random numbers."""
    with torch.random.fork_rng(devices=[]):
        return kind(config)


class Hparams:
    """Hyper-parameters in the other project's names, beside what the tensors say.

    ``None`` is as good as absent.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.values = {name: value for name, value in values.items() if value is not None}

    def get(self, name: str, default: Any) -> Any:
        """The value of a name, of the type of its default; the default where there is none."""
        value, kind = self.values.get(name, default), type(default)
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (float, int) if kind is float else kind):
            raise ValueError(f"hparams {name} must be of type {kind.__name__}, got {value!r}")
        if kind is float and not math.isfinite(value):  # JSON has Infinity and NaN
            raise ValueError(f"hparams {name} must be finite, got {value}")
        return kind(value)

    def require(self, name: str, example: Any) -> Any:
        """The value of a name that the tensors cannot tell, of the type of ``example``."""
        if name not in self.values:
            raise ValueError(f"hparams must have {name}: the tensors do not tell it")
        return self.get(name, example)

    def choose(self, name: str, default: str, choices: Iterable[str]) -> str:
        """The value of a name that has a few choices."""
        value = self.get(name, default)
        if value not in choices:
            raise ValueError(f"hparams {name} must be {' or '.join(choices)}, got {value}")
        return value

    def check(self, **inferred: Any) -> None:
        """ValueError where hparams have another value than the tensors."""
        for name, value in inferred.items():
            given = self.values.get(name, value)
            if (list(given) if isinstance(given, list | tuple) else given) != value:
                raise ValueError(f"hparams {name} must be {value}, as in the tensors, got {given}")

    def section(self, name: str) -> Hparams:
        """The hyper-parameters of a part, nested under ``name``."""
        return Hparams(self.get(name, {}))


def read_hparams(source: str | os.PathLike | Mapping[str, Any] | None) -> Hparams:
    """Hyper-parameters from a JSON file, a YAML file (.yml, .yaml) or a dict.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: a YAML file without PyYAML.
        ValueError: it is not a JSON object, or a YAML mapping of plain values.
    """
    if source is None or isinstance(source, Mapping):
        return Hparams(source or {})
    if not Path(source).is_file():
        raise FileNotFoundError(f"no hparams at {source}")
    if Path(source).suffix in (".yml", ".yaml"):
        kind, values = "YAML mapping", _read_yaml(Path(source))
    else:
        kind, values = "JSON object", _read_json(Path(source))
    if not isinstance(values, dict):
        raise ValueError(f"{source} must be a {kind}, got {type(values).__name__}")
    return Hparams(values)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON object: {error}") from None


def _read_yaml(path: Path) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ModuleNotFoundError("PyYAML is not installed; pip install 'fastwave[convert]' installs it") from None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must be a YAML mapping of plain values: {reason}") from None
