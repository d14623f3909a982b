"""Calls of the same shapes as one CUDA graph: on a GPU; and without one, operators that are recorded in its place."""

import threading
import time
import types

import pytest
import torch
from test_parallel_models import every, make
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastwave
from fastwave import graphs, runners
from fastwave.conditioners import TorchConditioner
from fastwave.graphs import KEPT, Graphs
from fastwave.ops.custom import has_cuda


class Tape(TorchDispatchMode):
    """The operators that a function calls, to be called again on the same tensors; as in a graph nothing else is.

    What waits for a device, or copies to it what Python holds, is refused.
    """

    REFUSED = ("item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "linalg_inv", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.overloadpacket.__name__ in self.REFUSED:
            raise RuntimeError(f"{operator} while a graph is captured")
        out = operator(*args, **(kwargs or {}))
        inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        written = [tensor.untyped_storage().data_ptr() not in inputs for tensor in tensors(out)]  # or it is a view
        self.calls.append((operator, args, kwargs or {}, out, written))
        return out

    def poison(self):
        """A graph that has been captured has not been run."""
        for *_, out, written in self.calls:
            for tensor, own in zip(tensors(out), written, strict=True):
                if own and tensor.is_floating_point():
                    tensor.fill_(torch.nan)

    def replay(self):
        for operator, args, kwargs, out, written in self.calls:
            for to, tensor, own in zip(tensors(out), tensors(operator(*args, **kwargs)), written, strict=True):
                if own:
                    to.copy_(tensor)


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def record(function, stream, pool=None):
    """capture, without a GPU."""
    tape = Tape()
    with tape:
        out = function()
    tape.poison()
    return tape.replay, out


@pytest.fixture(params=["cuda", "recorded"])
def machine(request, monkeypatch):
    """Vocoders on a GPU, or on the CPU as they are on one; how many graphs have been made; and where tensors are."""
    capture, captured = graphs.capture, []
    if request.param == "recorded":
        capture = record
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        monkeypatch.setattr(runners, "commutes", lambda model, stages: False)
        monkeypatch.setattr(runners, "make_conditioner", TorchConditioner)
        monkeypatch.setattr(runners, "CHUNK", runners.CUDA_BLOCK)
        monkeypatch.setattr(runners.Parallel, "shared", lambda runner, batch: {})
    elif not (has_cuda() and torch.cuda.is_available()):
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def counted(*arguments):
        captured.append(arguments)
        return capture(*arguments)

    def vocoder(model):
        if request.param == "cuda":
            return fastwave.Vocoder(model, device="cuda")
        vocoder = fastwave.Vocoder(model, threads=1)
        vocoder._runner.graphs = Graphs()
        return vocoder

    monkeypatch.setattr(graphs, "capture", counted)
    return types.SimpleNamespace(
        vocoder=vocoder, captured=captured, device="cuda" if request.param == "cuda" else "cpu"
    )


def mels(call, frames=9):
    return torch.rand(2, 6, frames, generator=torch.Generator().manual_seed(call))


@every
@pytest.mark.parametrize("ragged", [False, True])
def test_a_graph_does_what_a_first_call_does(machine, name, ragged):
    model = make(name)
    vocoder, waves, expected = machine.vocoder(model), [], []
    for call, temperature in enumerate((1.0, 0.5, 0.7, 0.0, 1.0)):
        lengths = torch.tensor([9, 1 + 2 * call]) if ragged else None
        named = dict(seed=call, temperature=temperature, lengths=lengths)
        waves.append(vocoder.generate(mels(call), **named))
        assert len(machine.captured) == (call >= 1)
        expected.append(machine.vocoder(model).generate(mels(call), **named))
    for wave, right in zip(waves, expected, strict=True):  # none has been written over
        assert wave.isfinite().all() and torch.equal(wave, right)


def test_shapes_of_their_own_graphs(machine):
    model = make("student")
    vocoder = machine.vocoder(model)
    shapes = [dict(), dict(lengths=torch.tensor([3, 9])), dict(frames=7), dict(rows=1)]

    def generate(vocoder, call, rows=2, frames=9, lengths=None):
        return vocoder.generate(mels(call, frames)[:rows], seed=call, lengths=lengths)

    for call in range(4):
        for i, shape in enumerate(shapes):
            wave = generate(vocoder, call, **shape)
            assert torch.equal(wave, generate(machine.vocoder(model), call, **shape))
            assert len(machine.captured) == (0, i + 1, 4, 4)[call]


def test_what_is_no_graph(machine, monkeypatch):
    """Streams, which carry state, and utterances that take a device long."""
    vocoder, mel = machine.vocoder(make("parallel-wavegan")), mels(0, 24)
    whole = vocoder.generate(mel)
    for _ in range(3):
        torch.testing.assert_close(torch.cat(list(vocoder.stream(mel.split(2, 2))), 1), whole, rtol=1e-5, atol=1e-5)
    assert not machine.captured
    monkeypatch.setattr(runners, "GRAPH_SAMPLES", 2 * 24 * 16 - 1)
    for _ in range(3):
        assert torch.equal(vocoder.generate(mel), whole)
    assert not machine.captured
    monkeypatch.setattr(runners, "GRAPH_SAMPLES", 2 * 24 * 16)
    assert torch.equal(vocoder.generate(mel), whole)
    assert len(machine.captured) == 1


def numbers(machine, size, value=0.0):
    return torch.full((size,), value, device=machine.device)


def double(x):
    return 2 * x


def test_shapes_that_vary_are_never_recorded(machine):
    calls = Graphs()
    for _ in range(3):
        for size in range(1, KEPT + 2):  # each comes back behind more others than are remembered
            assert calls(double, numbers(machine, size, size)).tolist() == [2 * size] * size
    assert not machine.captured
    for _ in range(3):
        for size in range(1, KEPT + 1):
            assert calls(double, numbers(machine, size, size)).tolist() == [2 * size] * size
    assert len(machine.captured) == KEPT
    assert len(calls.graphs) == KEPT


def test_the_oldest_graph_goes(machine):
    calls = Graphs()
    for size in (1, 1, *range(2, KEPT + 1), 1, KEPT + 1):
        calls(double, numbers(machine, size))
    assert calls(None, numbers(machine, 1, 3.0)).tolist() == [6]  # used in between, it has stayed; but 2 has gone
    for made in (1, 2):
        assert calls(double, numbers(machine, 2)).tolist() == [0, 0]
        assert len(machine.captured) == made


def test_inputs_are_not_written_to(machine):
    calls, given = Graphs(), [numbers(machine, 2, value) for value in range(4)]
    for x in given:
        calls(double, x)
    assert [x.tolist() for x in given] == [[value, value] for value in range(4)]


def test_a_refused_capture_is_said_and_not_tried_again(machine):
    def read(x):
        return x if x.sum().item() else x - 1

    calls = Graphs()
    assert calls(read, numbers(machine, 3)).tolist() == [-1, -1, -1]
    with pytest.warns(UserWarning, match="each kernel is launched by itself, as no CUDA graph could be made: "):
        assert calls(read, numbers(machine, 3, 2.0)).tolist() == [2, 2, 2]
    for value in (0.0, 3.0):
        assert calls(read, numbers(machine, 3, value)).tolist() == [value or -1] * 3
    assert len(machine.captured) == 1
    assert calls(double, numbers(machine, 5, 1.0)).tolist() == [2] * 5


def test_host_threads_take_turns(machine, monkeypatch):
    capture = graphs.capture

    def slow(*arguments):
        replay, out = capture(*arguments)
        return lambda: (time.sleep(0.01), replay()), out

    monkeypatch.setattr(graphs, "capture", slow)
    calls, wrong = Graphs(), []

    def work(value):
        for _ in range(5):
            if calls(double, numbers(machine, 4, value)).tolist() != [2 * value] * 4:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(machine.captured) == 1
