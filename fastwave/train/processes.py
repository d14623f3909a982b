"""The processes of one run, as torchrun starts them; a run that it did not start is alone."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["averaged", "joined", "rank", "size", "total", "wait"]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """In one group with the others that torchrun started: over NCCL where ``device`` is a GPU, else over gloo."""
    if "RANK" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with warnings.catch_warnings():
            # of a weight with a dimension of size 1, whose stride means nothing
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Which of the processes this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """The sum of ``values`` over the processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def wait() -> None:
    """Until all of them have come here."""
    if distributed.is_initialized():
        distributed.barrier()


@contextlib.contextmanager
def averaged(module: nn.Module, find_unused_parameters: bool) -> Iterator[nn.Module]:
    """``module`` such that every gradient is the mean over the processes; as it is where this one is alone."""
    if not distributed.is_initialized():
        yield module
        return
    parallel = DistributedDataParallel(module, find_unused_parameters=find_unused_parameters)
    try:
        yield parallel
    finally:
        # An error's traceback may keep it beyond the group. Its reducer, freed last, would then end the group's
        # threads, and wait for them with the GIL that they want.
        vars(parallel).clear()
