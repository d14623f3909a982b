"""The processes of one run, as torchrun starts them; a run that it did not start is alone."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["averaged", "joined", "rank", "size", "total"]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """In one group with the others that torchrun started: over NCCL where ``device`` is a GPU, else over gloo.

    None leaves before all are connected, nor before all have come to the end or to an error that all raise. gloo closes
    its connections with a reset, which another that is late with its last sum may see in place of that sum; and
    torchrun, which sees one that has ended in error, ends the others, of which one may be saving a checkpoint.
    """
    if "RANK" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(distributed.rendezvous("env://"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.PrefixStore("group", store), rank=rank, world_size=size)

    def all_have(word: str, wait: bool) -> None:
        if store.add(word, 1) == size:
            store.set(f"all {word}", "")
        if wait:
            store.wait([f"all {word}"])

    def part() -> None:
        all_have("come", wait=True)
        all_have("left", wait=rank == 0)  # who may be the store's host

    all_have("connected", wait=True)
    try:
        with warnings.catch_warnings():
            # of a weight with a dimension of size 1, whose stride means nothing
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield
        part()
    except (FloatingPointError, KeyboardInterrupt):  # which all of them raise
        part()
        raise
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
