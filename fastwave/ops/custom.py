"""How an op's shape, a dataclass, goes through torch.library as named arguments."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence

from torch import Tensor
from torch.utils.dlpack import to_dlpack

__all__ = ["argument_schema", "arguments", "capsule"]

SCHEMA_TYPES = {int: "int", float: "float", bool: "bool", str: "str", Sequence[int]: "int[]", Sequence[bool]: "bool[]"}


def argument_schema(*specs: type) -> str:
    """The fields of dataclasses as the keyword arguments of a torch.library schema."""
    parts = []
    for spec in specs:
        hints = typing.get_type_hints(spec)
        for field in dataclasses.fields(spec):
            hint = str if typing.get_origin(hints[field.name]) is typing.Literal else hints[field.name]
            parts.append(f"{SCHEMA_TYPES[hint]} {field.name}")
    return ", ".join(parts)


def arguments(spec) -> dict:
    """The fields of a dataclass as those keyword arguments."""
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}


def capsule(tensor: Tensor | None):
    """A DLPack capsule of the contiguous tensor; C++ checks its shape, dtype and device again."""
    return None if tensor is None else to_dlpack(tensor.detach().contiguous())
