"""Random calls of the bindings and the ops, valid and not: each works, or raises one line.

tests/test_fuzz.py makes a few hundred of them; ``python -m tests.fuzz --calls 100000`` as many as wanted, in processes
of their own, so that a crash or a hang is reported with the seeds that led to it. ``--seed N --calls 1`` repeats one.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import random
import re
import subprocess
import sys

import torch

from fastwave import _cpu
from fastwave.layers import GatedStack
from fastwave.ops.custom import arguments
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack, initial_state
from fastwave.ops.project import project
from fastwave.ops.rounding import DTYPES
from fastwave.ops.upsample import UpsampleSpec, upsample
from fastwave.ops.wavenet_sample import DISTRIBUTIONS, HeadSpec, initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack

OPS = {"gated_stack": gated_stack, "wavenet_sample": wavenet_sample, "upsample": upsample}
SPECS = {
    ("gated_stack", "spec"): GatedStackSpec,
    ("wavenet_sample", "spec"): GatedStackSpec,
    ("wavenet_sample", "head"): HeadSpec,
    ("upsample", "spec"): UpsampleSpec,
}
CHANNELS = (1, 2, 3, 5, 8, 15, 16, 17, 33)
INTEGERS = (-(2**63), -1, 0, 1, 2, 3, 64, 2**16, 2**16 + 1, 2**24 + 1, 2**31, 2**40, 2**63 - 1)
FLOATS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-40, 1e300)
OBJECTS = (None, "x", "", b"x", 1.5, math.nan, [], [1.5], ["x"], [None], {}, object(), 2**63, 2**200)
BATCH = 2500  # calls in one process


@dataclasses.dataclass
class Call:
    """A call of the op NAME or of its binding, _cpu.NAME.

    Attributes:
        outputs: tensors for the binding to write.
        shapes: of the outputs, where nothing is wrong.
        changes: what was made wrong.
    """

    name: str
    binding: bool
    specs: dict
    tensors: dict
    options: dict
    outputs: dict
    shapes: list
    changes: list[str] = dataclasses.field(default_factory=list)

    def __call__(self) -> list[torch.Tensor]:
        """The outputs."""
        if not self.binding:
            specs = {name: SPECS[self.name, name](**spec) for name, spec in self.specs.items()}
            out = OPS[self.name](**self.tensors, **specs, **self.options)
            return [out] if torch.is_tensor(out) else [*out][: len(self.shapes)]
        options = {name: value for name, value in self.options.items() if name not in ("return_parameters", "frames")}
        getattr(_cpu, self.name)(**self.specs, **self.tensors, **self.outputs, **options)
        return [output for output in self.outputs.values() if output is not None]


@functools.lru_cache(2000)
def make_stack(seed: int, sampler: bool) -> tuple[GatedStackSpec, dict | None, torch.Tensor]:
    """A random stack, the arguments of its head where it is a sampler, and its packed weights."""
    r = random.Random(seed)
    distribution = r.choice(DISTRIBUTIONS)
    outputs, in_channels = r.choice((1, 2, 4)), r.choice((1, 1, 2, 4))
    if sampler:
        last = {"gaussian": 2, "softmax": r.choice((1, 2, 17))}.get(distribution, 3 * r.randint(1, 4))
        outputs, in_channels = last, last if distribution == "softmax" and r.random() < 0.5 else 1
    epilogue = "none" if sampler or outputs % 2 else r.choice(("none", "affine", "inverse"))
    delay = "none" if sampler else r.choice(("none", "input", "none" if epilogue == "none" else "output"))
    kernel_size, front_width = r.choice((1, 2, 3, 5)), r.randint(1, 6)
    heads, layers = r.randint(0, 2), r.randint(1 if sampler else 0, 5)
    conditioned = r.random() < 0.7
    spec = GatedStackSpec(
        in_channels=in_channels,
        front_width=front_width,
        front_causal=sampler or front_width % 2 == 0 or r.random() < 0.8,
        front_relu=r.random() < 0.5,
        residual_channels=r.choice(CHANNELS),
        gate_channels=r.choice(CHANNELS),
        skip_channels=r.choice((0, *CHANNELS)) if layers else 0,
        kernel_size=kernel_size,
        dilations=[r.choice((1, 2, 3, 7, 8, 9, 16)) for _ in range(layers)],
        causal=sampler or kernel_size % 2 == 0 or r.random() < 0.8,
        residual_scale=r.choice((1.0, math.sqrt(0.5))),
        cond_channels=r.choice(CHANNELS) if conditioned else 0,
        cond_repeat=r.choice((1, 1, 2, 3, 16)),
        cond_taps=r.choice((1, 3, 5)) if conditioned and not sampler else 1,
        separable=not sampler and r.random() < 0.2,
        head_channels=[*(r.choice(CHANNELS) for _ in range(heads)), outputs],
        head_relu=[r.random() < 0.5 for _ in range(heads + 1)],
        epilogue=epilogue,
        epilogue_order=r.choice(("mu", "log_sigma")),
        delay=delay,
        dtype=r.choice(DTYPES),
    )
    head = arguments(HeadSpec(distribution=distribution, log_scale_min=-7.0)) if sampler else None
    torch.manual_seed(seed)
    return spec, head, pack_gated_stack(GatedStack(spec).requires_grad_(False).weights(), spec)


def maybe(r: random.Random, value, chance: float = 0.5):
    return value() if r.random() < chance else None


def valid_call(r: random.Random) -> Call:
    name = r.choice(("gated_stack", "wavenet_sample", "upsample"))
    binding, seed = r.random() < 0.5, r.randrange(1000)
    torch.manual_seed(r.randrange(2**31))
    batch, time, threads = r.randint(0, 3), r.choice((0, 1, r.randint(2, 40))), r.randint(1, 5)
    if name == "upsample":
        return valid_upsample(r, binding, batch, threads)
    spec, head, weights = make_stack(seed, name == "wavenet_sample")
    sampling = name == "wavenet_sample"
    state = initial_sampler_state(spec, batch) if sampling else maybe(r, lambda: initial_state(spec, batch))
    pending = r.randint(0, spec.look_ahead) if state is not None and not sampling else 0
    columns = -(-time // spec.cond_repeat) - (-pending // spec.cond_repeat) + spec.cond_taps - 1
    lengths = [r.randint(0, pending + time) for _ in range(batch)]
    c = (spec.cond_channels, columns)
    if not sampling and r.random() < 0.5:
        group = math.gcd(spec.cond_channels, r.choice((1, 2, 3, 16)))
        c = (spec.cond_channels // group, columns, group)
    tensors = {
        "weights": weights,
        "c": torch.randn(batch, *c) if spec.cond_channels else None,
        "g": maybe(r, lambda: torch.randn(batch, spec.layers, 2 * spec.gate_channels)),
        "lengths": maybe(r, lambda: torch.tensor(lengths, dtype=torch.int64)),
        "state": state,
    }
    if not sampling:
        last = state is None or r.random() < 0.5
        made = max(0, pending + time - (0 if last else spec.look_ahead))
        needs_y = spec.epilogue != "none" and (spec.out_channels != spec.in_channels or (state is not None))
        tensors |= {
            "x": torch.randn(batch, spec.in_channels, time),
            "u": maybe(r, lambda: torch.randn(batch, spec.layers, spec.residual_channels)),
            "y": maybe(r, lambda: torch.randn(batch, spec.out_channels, made), 1 if needs_y else 0.2),
            "interpolation": torch.rand(batch, pending + time, spec.cond_taps) if spec.cond_taps > 1 else None,
            "projected": None,
        }
        if spec.cond_channels and spec.cond_taps == 1 and r.random() < 0.3:
            tensors["projected"] = project(tensors["c"], weights, spec, g=tensors["g"])
            tensors["c"] = tensors["g"] = None
        shapes = {"out": (batch, spec.out_channels, made)}
        reverse = state is None and spec.cond_taps == 1 and r.random() < 0.5
        options = {"reverse": reverse, "pending": pending, "last": last, "threads": threads}
        specs = {"spec": arguments(spec)}
    else:
        parameters = spec.head_channels[-1]
        mixture = head["distribution"].startswith("mixture")
        noise_channels = parameters // 3 + 1 if mixture else 1
        tensors |= {
            "noise": torch.rand(batch, noise_channels, time).clamp(1e-3, 1 - 1e-3),
            "table": torch.linspace(-1, 1, parameters) if head["distribution"] == "softmax" else None,
            "forced": maybe(r, lambda: torch.rand(batch, r.randint(0, time)), 0.3),
        }
        returned = r.random() < 0.5
        shapes = {"samples": (batch, time), "parameters": (batch, parameters, time) if returned else None}
        options = {"temperature": r.choice((0.0, 0.5, 1.0)), "threads": threads, "return_parameters": returned}
        specs = {"spec": arguments(spec), "head": dict(head)}
    return make_call(name, binding, specs, tensors, options, shapes)


def valid_upsample(r: random.Random, binding: bool, batch: int, threads: int) -> Call:
    spec = UpsampleSpec(
        n_mels=r.choice((1, 3, 16)),
        scales=[r.randint(1, 5) for _ in range(r.randint(0, 3))],
        freq_kernel=r.choice((1, 3, 5)),
        slope=r.choice((0.4, 1.0)),
        context=r.randint(0, 2),
        context_conv=r.random() < 0.5,
        causal=r.random() < 0.3,
    )
    size = sum(1 + spec.freq_kernel * 3 * s for s in spec.scales)
    size += spec.n_mels**2 * (2 * spec.context + 1) * spec.context_conv
    whole = r.randint(0, 12)
    skip = r.randint(0, whole)
    frames = r.randint(0, whole - skip)
    tensors = {"mel": torch.randn(batch, spec.n_mels, whole + 2 * spec.context), "weights": torch.randn(size)}
    options = {"skip": skip, "frames": frames, "threads": threads}
    shapes = {"out": (batch, spec.n_mels, frames * math.prod(spec.scales))}
    return make_call("upsample", binding, {"spec": arguments(spec)}, tensors, options, shapes)


def make_call(name: str, binding: bool, specs: dict, tensors: dict, options: dict, shapes: dict) -> Call:
    outputs = {key: None if shape is None else torch.full(shape, math.nan) for key, shape in shapes.items()}
    wanted = [shape for shape in shapes.values() if shape is not None]
    return Call(name, binding, specs, tensors, options, outputs if binding else {}, wanted)


def changed_tensor(r: random.Random, tensor: torch.Tensor | None, binding: bool):
    """Something else in a tensor's place, and what it is."""
    if not torch.is_tensor(tensor) or r.random() < 0.1:
        size = r.randint(0, 3)
        return torch.randn([r.randint(0, 4) for _ in range(size)]), f"a tensor of {size} dimensions"
    kinds = ["none", "dtype", "shape", "rank", "strided", "expanded", "meta", "grad", "nan", "huge"]
    kind = r.choice([*kinds, "object"] if binding else kinds)
    if kind == "none":
        return None, kind
    if kind == "dtype":
        dtype = r.choice((torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.int32, torch.bool))
        return tensor.to(dtype), str(dtype)
    if kind == "shape" and tensor.dim() and max(tensor.shape) < 1000:
        dim = r.randrange(tensor.dim())
        return torch.zeros([max(0, n + r.choice((-1, 1)) * (i == dim)) for i, n in enumerate(tensor.shape)]), kind
    if kind == "rank":
        return r.choice((tensor[None], tensor.flatten(), tensor.new_zeros(()))), kind
    if kind == "strided" and tensor.dim():
        return torch.stack([tensor, tensor], -1)[..., 0], kind
    if kind == "expanded" and tensor.dim() and tensor.shape[0]:
        return tensor[:1].expand_as(tensor), kind
    if kind == "meta":
        return tensor.to("meta"), kind
    if kind == "grad" and tensor.is_floating_point():
        return tensor.clone().requires_grad_(), kind
    if kind == "huge":
        return torch.empty(2**40, 1, 0) if tensor.dim() == 3 else torch.empty(2**40, 0), kind
    if kind == "object":
        return r.choice(OBJECTS), kind
    value = r.choice((math.nan, math.inf, 1e30, -(2**62), 2**62))
    if not tensor.is_floating_point():
        value = 0 if not math.isfinite(value) else int(value) % 100 - 50
    filled = tensor.clone()
    filled.view(-1)[: 1 + filled.numel() // 3] = value
    return filled, f"{kind} {value}"


def random_call(r: random.Random) -> Call:
    """A valid call, or one with something wrong in it."""
    call = valid_call(r)
    for _ in range(r.choice((0, 1, 1, 2))):
        what = r.choice(("tensor", "tensor", "spec", "option"))
        if what == "tensor":
            name = r.choice([*call.tensors, *call.outputs])
            place = call.tensors if name in call.tensors else call.outputs
            place[name], how = changed_tensor(r, place[name], call.binding)
        elif what == "option":
            name = r.choice([key for key in call.options if key != "return_parameters"])
            values = {"reverse": (True, False), "last": (True, False), "temperature": FLOATS}.get(name, INTEGERS)
            how = call.options[name] = r.choice(values)
        else:
            spec = call.specs[r.choice(list(call.specs))]
            name = r.choice(list(spec))
            how = changed_field(r, spec, name, call.binding)
        call.changes.append(f"{name}: {how}")
    return call


def changed_field(r: random.Random, spec: dict, name: str, binding: bool):
    if binding and (r.random() < 0.3 or not isinstance(spec[name], bool | str | float | int | list | tuple)):
        if r.random() < 0.2:
            del spec[name]
            return "missing"
        spec[name] = r.choice(OBJECTS)
    elif isinstance(spec[name], bool):
        spec[name] = not spec[name]
    elif isinstance(spec[name], str):
        spec[name] = r.choice(("x", "", *DTYPES, *DISTRIBUTIONS, "affine", "input", "output", "mu"))
    elif isinstance(spec[name], float):
        spec[name] = r.choice(FLOATS)
    elif isinstance(spec[name], int):
        spec[name] = r.choice(INTEGERS)
    else:
        values = list(spec[name])
        if r.random() < 0.5:
            values = r.choice(([], values[1:], values * 2, values * 600))
        elif values:
            # a dilation of 2^20 needs gigabytes: out of memory is tried in tests/test_errors.py
            values[r.randrange(len(values))] = r.choice([n for n in INTEGERS if not 2**16 < n <= 2**24])
        spec[name] = values
    return repr(spec[name])[:50]


def problem(call: Call) -> str | None:
    """Makes a call; what is wrong with how it ended."""
    allowed = (ValueError, TypeError, MemoryError)
    if any(change.endswith("missing") for change in call.changes):
        allowed += (KeyError,)
    try:
        outputs = call()
    except allowed as error:
        message = str(error)
        if not call.changes:
            return f"a valid call raised {error!r}"
        return f"{type(error).__name__} with {len(message.splitlines())} lines: {message}" if "\n" in message else None
    except Exception as error:
        if not call.binding and re.search("allocate memory|calculation overflowed", str(error)):
            return None  # torch's own way to say that an output is too large
        return f"raised {type(error).__name__}: {error}"
    if call.changes:
        taken = [t for t in (call.tensors | call.outputs).values() if torch.is_tensor(t)]
        return "took a tensor on meta" if any(t.device.type == "meta" for t in taken) else None
    shapes = [tuple(output.shape) for output in outputs]
    if shapes != call.shapes:
        return f"gave {shapes}, not {call.shapes}"
    return None if all(torch.isfinite(output).all() for output in outputs) else "gave NaN or infinity"


def describe(call: Call) -> str:
    return f"{'_cpu.' * call.binding}{call.name}, {', '.join(call.changes) or 'valid'}"


def run_batch(seeds: range) -> None:
    """In a process of its own: prints the seed of each call before it is made, and what was wrong after it."""
    torch.set_num_threads(1)
    for seed in seeds:
        print(f"seed {seed}", flush=True)
        call = random_call(random.Random(seed))
        if found := problem(call):
            print(f"WRONG seed {seed}: {describe(call)}: {found}", flush=True)
    print("done")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first call; each has its own")
    parser.add_argument("--batch", action="store_true", help="make all of them in this process")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.calls)
    if options.batch:
        run_batch(seeds)
        return 0
    wrong, start = 0, seeds.start
    while start < seeds.stop:
        calls = min(BATCH, seeds.stop - start)
        command = [sys.executable, "-m", "tests.fuzz", "--batch", "--seed", str(start), "--calls", str(calls)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
            output, ended = done.stdout, f"ended with status {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, ended = (error.stdout or b"").decode(), "ran for more than 10 minutes"
        lines = output.splitlines()
        found = [line for line in lines if line.startswith("WRONG")]
        start += calls
        if lines[-1:] != ["done"]:  # go on behind the call that ended the process
            last = max((int(line.split()[1]) for line in lines if re.fullmatch(r"seed \d+", line)), default=start - 1)
            found.append(f"CRASH at seed {last}, {ended}:\n" + "\n".join(lines[-20:]))
            start = last + 1
        for line in found:
            print(line, flush=True)
        wrong += len(found)
        if sys.stderr.isatty():
            print(f"\r{start - seeds.start:,} calls, {wrong} wrong", end="", file=sys.stderr)
    print(f"{options.calls:,} calls, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
