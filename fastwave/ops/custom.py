"""How an op goes through torch.library: its shape, a dataclass, as named arguments.

Ops are defined on a Library and not by torch.library.custom_op, whose first call imports the compiler: two seconds, and
a Ctrl-C in the middle of them leaves torch half imported.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

try:
    from fastwave import _cuda
except ImportError:  # built without it
    _cuda = None

__all__ = [
    "CUDA_DTYPES",
    "argument_schema",
    "arguments",
    "capsule",
    "cuda_kernels",
    "current_stream",
    "define",
    "has_cuda",
    "require_all_cpu",
    "require_cpu",
    "require_one_device",
]

CUDA_DTYPES = ("float32", "bfloat16")  # of the products, on a CUDA device

LIBRARY = torch.library.Library("fastwave", "DEF")

SCHEMA_TYPES = {int: "int", float: "float", bool: "bool", str: "str", Sequence[int]: "int[]", Sequence[bool]: "bool[]"}


def has_cuda() -> bool:
    """Whether fastwave was built with its CUDA kernels."""
    return _cuda is not None


def cuda_kernels(name: str, device: torch.device):
    """The CUDA module, for what ``name`` says is on that device; ValueError if there is none."""
    if _cuda is None:
        raise ValueError(f"{name} must be on cpu, as fastwave is built without CUDA, got {device}")
    return _cuda


def current_stream(tensor: Tensor) -> int:
    """The handle of the stream that the tensor's device works on."""
    return torch.cuda.current_stream(tensor.device).cuda_stream


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


def define(name: str, schema: str, cpu: Callable, fake: Callable, cuda: Callable | None = None) -> None:
    """Registers torch.ops.fastwave.NAME: its implementations, and the shapes of its results."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None:
        LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"fastwave::{name}", fake, lib=LIBRARY)


def require_cpu(name: str, tensor: Tensor) -> None:
    """ValueError unless the tensor is on the CPU, where the kernels are; TypeError if it is none."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on cpu, got {tensor.device}")


def require_all_cpu(required: dict[str, Tensor], **optional: Tensor | None) -> None:
    """require_cpu for every tensor of a call.

    With one of them on "meta" torch would call the fake op, and hand out an output that nobody has written.
    """
    for name, tensor in (required | {n: t for n, t in optional.items() if t is not None}).items():
        require_cpu(name, tensor)


def require_one_device(required: dict[str, Tensor], **optional: Tensor | None) -> None:
    """As require_all_cpu, but all tensors may be on the CUDA device of the first, too."""
    first = next(iter(required.values()))
    if not isinstance(first, Tensor) or first.device.type != "cuda":
        return require_all_cpu(required, **optional)
    for name, tensor in (required | {n: t for n, t in optional.items() if t is not None}).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.device != first.device:
            raise ValueError(f"{name} must be on {first.device}, got {tensor.device}")
