"""The CUDA module on the emulated device (tests/cuda_on_cpu), where it was built: `make cuda_on_cpu`."""

import ctypes
import importlib.machinery
import importlib.util
import math
from pathlib import Path

import torch
from torch.utils.dlpack import from_dlpack, to_dlpack

from fastwave.ops.gated_stack import ungrouped

BUILD = Path(__file__).resolve().parent.parent / "build" / "cuda_on_cpu"


def _load(name: str):
    """Both modules are in one file, and so share the emulator."""
    for path in BUILD.glob("_cuda.*"):
        spec = importlib.util.spec_from_file_location(
            name, path, loader=importlib.machinery.ExtensionFileLoader(name, str(path))
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return None


cuda, emulator = _load("_cuda"), _load("_emulator")


class _Managed(ctypes.Structure):
    """The beginning of a DLManagedTensor."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def on_cuda(capsule):
    """A tensor's DLPack capsule that says it is on device cuda:0, whose memory is the host's."""
    if capsule is not None:
        managed = _Managed.from_address(_pointer(capsule, b"dltensor"))
        managed.device_type, managed.device_id = 2, 0
    return capsule


def on_cuda_all(tensors: dict) -> dict:
    return {name: None if tensor is None else on_cuda(to_dlpack(tensor)) for name, tensor in tensors.items()}


class Kernels:
    """The emulated module in the place of fastwave._cpu: so the CPU's op, and its tests, run on it as they are."""

    @staticmethod
    def gated_stack(spec, *, threads, projected, reverse, pending, last, **capsules):
        tensors = {name: None if capsule is None else from_dlpack(capsule) for name, capsule in capsules.items()}
        x, c = tensors["x"], ungrouped(tensors["c"])
        tensors["c"] = None if c is None else c.contiguous()
        plan = cuda.gated_stack_plan(spec, max(1, len(x)), x.shape[-1], 0 if c is None else c.shape[-1], last, device=0)
        tensors["workspace"] = torch.full((plan["workspace"] // 4,), math.nan)
        cuda.gated_stack(spec, **on_cuda_all(tensors), reverse=reverse, pending=pending, last=last, stream=0)

    @staticmethod
    def wavenet_sample(spec, head, *, threads, temperature, **capsules):
        tensors = {name: None if capsule is None else from_dlpack(capsule) for name, capsule in capsules.items()}
        plan = cuda.wavenet_sample_plan(spec, max(1, len(tensors["noise"])), 0)
        tensors["workspace"] = torch.full((plan["workspace"] // 4,), math.nan)
        cuda.wavenet_sample(spec, head, **on_cuda_all(tensors), temperature=temperature, stream=0)
