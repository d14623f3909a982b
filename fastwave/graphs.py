"""CUDA graphs: the work that a function starts on a device, recorded once and then started again as one."""

from __future__ import annotations

import collections
import threading
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Graphs", "capture"]

T = TypeVar("T")

KEPT = 8  # combinations of shapes that are remembered
_capturing = threading.Lock()  # only one capture may be under way in a process


def capture(function: Callable[[], T], stream: torch.cuda.Stream, pool=None) -> tuple[Callable[[], None], T]:
    """Records what ``function`` starts: a function that starts it all again, and where its results then lie.

    What is loaded or chosen at a first call must have been, in this thread; nothing may wait for the device.

    Args:
        stream: any of the device, to record on.
        pool: torch's handle of the memory that graphs share which are not replayed at once.
    """
    graph = torch.cuda.CUDAGraph()
    recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
    with _capturing, torch.cuda.stream(stream), recording:  # a recording that fails leaves its stream the current one
        results = function()
    return graph.replay, results


class Graphs:
    """Calls of functions that do nothing but start work on a CUDA device, as graphs where shapes of inputs come back.

    A call whose inputs have the shapes of one not long ago is recorded after it, later ones are replayed: shapes that
    vary are never recorded. Calls wait for each other, so graphs share memory, which is what the largest takes.
    """

    def __init__(self) -> None:
        self.lock, self.refused, self.stream, self.pool = threading.Lock(), False, None, None
        self.graphs = collections.OrderedDict()  # by shapes, the latest last; None: came once

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """function(*inputs), on the CPU. What else the function reads must follow from the inputs' shapes."""
        shapes = tuple(None if tensor is None else tensor.shape for tensor in inputs)
        with self.lock:
            again, graph = shapes in self.graphs, self.graphs.pop(shapes, None)
            out = (graph or function)(*inputs).cpu()
            if again and not graph and not self.refused:
                graph = self._record(function, inputs)
            self.graphs[shapes] = graph
            if len(self.graphs) > KEPT:
                self.graphs.popitem(last=False)
        return out

    def _record(self, function: Callable[..., Tensor], inputs: tuple[Tensor | None, ...]) -> Callable | None:
        held = [None if tensor is None else tensor.clone() for tensor in inputs]  # where the graph reads
        if self.pool is None:
            self.stream, self.pool = torch.cuda.Stream(inputs[0].device), torch.cuda.graph_pool_handle()
        try:
            replay, out = capture(lambda: function(*held), self.stream, self.pool)
        except RuntimeError as error:
            self.refused, why = True, str(error).partition("\n")[0]
            warnings.warn(f"each kernel is launched by itself, as no CUDA graph could be made: {why}", stacklevel=2)
            return None

        def run(*inputs: Tensor | None) -> Tensor:
            for to, tensor in zip(held, inputs, strict=True):
                if tensor is not None:
                    to.copy_(tensor)
            replay()
            return out

        return run
