"""gated_stack against its float64 reference: every machine, boundary sizes, and the real models' sizes."""

import dataclasses
import math

import emulated_cuda
import pytest
import torch
from kernels import EMULATED, OPCHECKS, assert_close, error, in_float32, skip_on_cuda, to64

from fastwave import _cpu, models
from fastwave.layers import GatedStack
from fastwave.models import ClariNetStudentConfig
from fastwave.ops.custom import arguments, has_cuda
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack, gated_stack_ref, initial_state
from fastwave.ops.project import project
from fastwave.ops.rounding import DTYPES
from fastwave.pack import pack_gated_stack


def stack_on(machine):
    """gated_stack on a machine, of the CPU's tensors."""
    device = "cuda" if machine == "cuda" else "cpu"

    def run(x, weights, spec, state=None, **named):
        tensors = dict(x=x, weights=weights, state=state) | named
        there = {n: tensor.to(device) if torch.is_tensor(tensor) else tensor for n, tensor in tensors.items()}
        out = gated_stack(spec=spec, **there)
        if state is not None:
            state.copy_(there["state"])
        return out.cpu()

    return run


def make_stack(spec, seed=0):
    torch.manual_seed(seed)
    stack = GatedStack(spec).requires_grad_(False)
    for name, parameter in stack.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.2)
    return stack, GatedStack(spec).double().requires_grad_(False)


SMALL = dict(
    front_width=5,
    front_relu=True,
    residual_channels=20,
    gate_channels=24,
    skip_channels=18,
    kernel_size=3,
    dilations=(1, 2, 4, 8, 16, 3),
    cond_channels=7,
    head_channels=(18, 2),
    head_relu=(True, True),
)

FRONT_ALONE = dict(dilations=(), skip_channels=0, cond_channels=0, head_channels=(), head_relu=())

SHAPES = {
    "plain": {},
    "tiny": dict(residual_channels=1, gate_channels=1, skip_channels=1, cond_channels=1, head_channels=(1, 2)),
    "lanes": dict(residual_channels=16, gate_channels=32, skip_channels=48, head_channels=(48, 2)),
    "lanes-1": dict(residual_channels=15, gate_channels=31, skip_channels=47, head_channels=(47, 2)),
    "lanes+1": dict(residual_channels=17, gate_channels=33, skip_channels=49, head_channels=(49, 2)),
    "k1": dict(kernel_size=1),
    "k2": dict(kernel_size=2, dilations=(1, 7, 8, 9, 64)),
    "k5": dict(kernel_size=5),
    "front1": dict(front_width=1, front_relu=False),
    "front32": dict(front_width=32),
    "unconditional": dict(cond_channels=0),
    "repeat": dict(cond_repeat=16),
    "scale1": dict(residual_scale=1.0),
    "no-skip": dict(skip_channels=0, head_channels=(2,), head_relu=(False,)),
    "three-heads": dict(head_channels=(30, 5, 4), head_relu=(False, True, False)),
    "centred": dict(causal=False, front_causal=False),
    "centred-front1": dict(causal=False, front_width=1),
    "affine": dict(epilogue="affine"),
    "affine-input": dict(epilogue="affine", delay="input"),
    "affine-output": dict(epilogue="affine", delay="output"),
    "inverse": dict(epilogue="inverse", epilogue_order="log_sigma"),
    "inverse-output": dict(epilogue="inverse", epilogue_order="log_sigma", delay="output"),
    "coupling": dict(in_channels=4, head_channels=(18, 8), epilogue="inverse", causal=False, front_width=1),
    "delayed": dict(delay="input"),
    "separable": dict(separable=True),
    "separable-centred": dict(separable=True, causal=False, skip_channels=0, head_channels=(2,), head_relu=(False,)),
    "interpolated": dict(cond_taps=3, cond_repeat=16),
    "interpolated-centred": dict(cond_taps=5, cond_repeat=16, causal=False),
    "interpolated-dense": dict(cond_taps=3),
    "no-head": dict(head_channels=(), head_relu=()),
    "front-alone": FRONT_ALONE,
    "front-alone-centred": FRONT_ALONE | dict(front_causal=False, front_width=3, in_channels=20, front_relu=False),
}


def make_inputs(spec, time, batch=2):
    columns = -(-time // spec.cond_repeat) + spec.cond_taps - 1
    x = torch.randn(batch, spec.in_channels, time)
    c = torch.randn(batch, spec.cond_channels, columns) if spec.cond_channels else None
    extras = {
        "g": torch.randn(batch, spec.layers, 2 * spec.gate_channels),
        "u": torch.randn(batch, spec.layers, spec.residual_channels),
        "y": torch.randn(batch, spec.out_channels, time),
        "lengths": torch.tensor([time] + [time // 3] * (batch - 1)),
        "reverse": True,
    }
    if spec.cond_taps > 1:
        extras["interpolation"] = torch.rand(batch, time, spec.cond_taps)
        del extras["reverse"]
    return x, c, extras


def required(spec, extras):
    """Those of the extras that the stack cannot do without."""
    return {"interpolation": extras["interpolation"]} if spec.cond_taps > 1 else {}


# Shapes whose buffers differ, for a device on which they do not fit.
LITTLE_MEMORY = (
    "plain",
    "lanes-1",
    "k5",
    "repeat",
    "three-heads",
    "centred",
    "separable",
    "interpolated",
    "front-alone",
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_stack(stack_machine, shape, dtype):
    skip_on_cuda(stack_machine, dtype)
    if stack_machine == "emulated-sm75" and shape not in LITTLE_MEMORY:
        return  # slow
    run, emulated = stack_on(stack_machine), stack_machine in EMULATED
    spec = GatedStackSpec(**(SMALL | SHAPES[shape]), dtype=dtype)
    stack, stack64 = make_stack(spec)
    stack64.load_state_dict(stack.state_dict())
    weights = pack_gated_stack(stack.weights(), spec)
    assert weights.dtype == getattr(torch, dtype)
    assert weights.nbytes == 4 * _cpu.packed_size(arguments(spec))
    times = (1, 75) if emulated else (1, 15, 16, 17, 97, 250)
    for time in times:
        x, c, extras = make_inputs(spec, time)
        some = [] if emulated else [{name: extras[name]} for name in extras]
        choices = [{}, *some, extras] if time == times[-1] else [{}]
        for named in choices:
            named = named | required(spec, extras)
            out = run(x, weights, spec, c=c, **named)
            named64 = to64({"x": x, "c": c} | named)
            exact = None
            if dtype != "float32" and time == times[-1] and spec.layers:
                exact = gated_stack_ref(weights=stack64.weights(), spec=in_float32(spec), **named64)
            if dtype == "float32" or exact is not None or not spec.layers:
                assert_close(out, stack(x, c, **named), stack64(**named64), exact)
    no_c = None if c is None else c[..., : spec.cond_taps - 1]
    nothing = {name: tensor[:, :0] for name, tensor in required(spec, extras).items()}
    empty = run(x[..., :0], weights, spec, c=no_c, **nothing)
    assert empty.shape == (2, spec.out_channels, 0)


# Shapes that differ in what an emulated device's kernel does with the state.
EMULATED_PIECES = {
    *((shape, "emulated-sm90") for shape in ("plain", "front32", "no-skip", "affine-output", "separable", "delayed")),
    *((shape, "emulated-sm75") for shape in ("interpolated", "repeat")),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [name for name, shape in SHAPES.items() if not GatedStackSpec(**(SMALL | shape)).look_ahead]
)
def test_gated_stack_in_pieces_is_the_same_to_the_bit(stack_machine, shape, dtype):
    skip_on_cuda(stack_machine, dtype)
    if stack_machine in EMULATED and (shape, stack_machine) not in EMULATED_PIECES:
        return  # slow
    run, unit = stack_on(stack_machine), 16 if stack_machine in EMULATED else 48
    spec = GatedStackSpec(**(SMALL | SHAPES[shape]), dtype=dtype)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    x, c, extras = make_inputs(spec, unit * 6)
    vectors = {"g": extras["g"], "u": extras["u"]}
    whole = run(x, weights, spec, c=c, **vectors, **required(spec, extras))
    states = [initial_state(spec, 2) for _ in range(2)]
    kernel, reference = [], []
    for start, end in ((0, 0), (0, unit), (unit, 4 * unit), (4 * unit, 5 * unit), (5 * unit, 6 * unit)):
        piece = None if c is None else c[..., start // spec.cond_repeat : end // spec.cond_repeat + spec.cond_taps - 1]
        named = vectors | {name: tensor[:, start:end] for name, tensor in required(spec, extras).items()}
        kernel.append(run(x[..., start:end], weights, spec, c=piece, state=states[0], **named))
        if end:
            reference.append(stack(x[..., start:end], piece, state=states[1], **named))
    assert torch.equal(torch.cat(kernel, 2), whole)
    tolerance = 2e-5 if dtype == "float32" else 0.02
    torch.testing.assert_close(torch.cat(reference, 2), whole, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(states[0], states[1], rtol=tolerance, atol=tolerance)  # one layout for both


LOOKS_AHEAD = {
    **{name: shape for name, shape in SHAPES.items() if GatedStackSpec(**(SMALL | shape)).look_ahead},
    "centred-repeat": dict(causal=False, cond_repeat=3),
    "centred-affine-output": dict(causal=False, epilogue="affine", delay="output"),
    "centred-front-alone": dict(front_causal=False, delay="input"),
    "wide": dict(causal=False, dilations=(1, 64, 128, 2)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "pieces", [(0, 288), (3, 9, 27, 249), (96, 96, 96, 0), (0, 0, 3, 285), (285, 3), (3, 51, 36)], ids=str
)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", LOOKS_AHEAD)
def test_a_stack_that_looks_ahead_in_pieces_is_the_same_to_the_bit(stack_machine, shape, ragged, pieces, dtype):
    skip_on_cuda(stack_machine, dtype)
    if stack_machine in EMULATED and (pieces != (3, 51, 36) or stack_machine != "emulated-sm90"):
        return  # slow
    run = stack_on(stack_machine)
    if ragged and dtype != "float32":
        return  # lengths act before any rounding
    spec = GatedStackSpec(**(SMALL | LOOKS_AHEAD[shape]), dtype=dtype)
    if any(piece % spec.cond_repeat for piece in pieces[:-1]):
        return  # only the last piece may end within a column of c
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    time, rate = sum(pieces), spec.cond_repeat
    x, c, extras = make_inputs(spec, time, batch=4)
    lengths = torch.tensor([time, 1, 0, time // 3]) if ragged else None
    vectors = {"g": extras["g"], "u": extras["u"]}
    columns = {"y": extras["y"]} if spec.epilogue != "none" else {}
    whole = run(x, weights, spec, c=c, lengths=lengths, **vectors, **columns, **required(spec, extras))
    state, outputs, taken = initial_state(spec, 4), [], 0
    for i, piece in enumerate(pieces):
        pending, last = min(taken, spec.look_ahead), i + 1 == len(pieces)
        first, end = taken - pending, taken + piece
        named = vectors | {name: tensor[:, first:end] for name, tensor in required(spec, extras).items()}
        made = end if last else max(first, end - spec.look_ahead)
        named |= {name: tensor[..., first:made] for name, tensor in columns.items()}
        if lengths is not None:
            named["lengths"] = (lengths - first).clamp(0, end - first)
        window = slice(taken // rate - -(-pending // rate), -(-end // rate) + spec.cond_taps - 1)
        outputs.append(
            run(
                x[..., taken:end],
                weights,
                spec,
                c=None if c is None else c[..., window],
                state=state,
                pending=pending,
                last=last,
                **named,
            )
        )
        assert outputs[-1].shape[2] == made - first
        taken = end
    assert torch.equal(torch.cat(outputs, 2), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["plain", "tiny", "lanes+1", "repeat", "centred", "separable"])
def test_projected_conditioning_gives_the_same_bits(isa, shape, dtype):
    spec = GatedStackSpec(**(SMALL | SHAPES[shape]), dtype=dtype)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    for time in (0, 1, 250):
        x, c, extras = make_inputs(spec, time)
        for g in (None, extras["g"]):
            projected = project(c, weights, spec, g=g, threads=2)
            around = torch.nn.functional.pad(projected, (0, 0, 3, 2), value=math.nan)
            window = around[:, :, 3 : 3 + projected.shape[2]]
            for named in ({}, {"u": extras["u"], "lengths": extras["lengths"], "reverse": True}):
                expected = gated_stack(x, weights, spec, c=c, g=g, **named)
                assert torch.equal(gated_stack(x, weights, spec, projected=projected, **named), expected)
                assert torch.equal(gated_stack(x, weights, spec, projected=window, **named), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["plain", "repeat", "centred", "interpolated"])
def test_grouped_conditioning_gives_the_same_bits(stack_machine, shape, dtype):
    """c as (batch, bands, columns, group), in place of what ``squeeze`` makes of it."""
    skip_on_cuda(stack_machine, dtype)
    run, emulated = stack_on(stack_machine), stack_machine in EMULATED
    spec = GatedStackSpec(**(SMALL | SHAPES[shape] | dict(cond_channels=48)), dtype=dtype)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    x, _, extras = make_inputs(spec, 40 if emulated else 250)
    columns = make_inputs(spec, x.shape[2])[1].shape[2]
    backwards = {} if spec.cond_taps > 1 else {"lengths": extras["lengths"], "reverse": True}
    for group in (1, 3, 16, 48):
        grouped = torch.randn(2, 48 // group, columns, group)
        c = grouped.transpose(2, 3).reshape(2, 48, columns)
        for named in (required(spec, extras), required(spec, extras) | backwards):
            expected = run(x, weights, spec, c=c, **named)
            assert torch.equal(run(x, weights, spec, c=grouped, **named), expected)
            assert torch.equal(
                gated_stack_ref(x, stack.weights(), spec, c=grouped, **named),
                gated_stack_ref(x, stack.weights(), spec, c=c, **named),
            )
        if stack_machine in _cpu.isas() and spec.cond_taps == 1:
            assert torch.equal(project(grouped, weights, spec), project(c, weights, spec))


# residual, gate and skip channels; others
SIZES = {
    "32/64/1": (32, 64, 1, dict(kernel_size=2, head_channels=(2,), head_relu=(False,))),
    "128/256/128": (128, 256, 128, dict(kernel_size=5, head_channels=(128, 2))),
    "512/512/512": (512, 512, 512, dict(head_channels=(512, 2))),
    "256/512/33": (256, 512, 33, dict(kernel_size=2, head_channels=(33, 2))),
    "thirty-layers": (20, 24, 18, dict(dilations=[2**i for i in range(10)] * 3)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_gated_stack_over_the_range_of_sizes(stack_machine, size, dtype):
    skip_on_cuda(stack_machine, dtype)
    residual, gate, skip, shape = SIZES[size]
    widths = dict(residual_channels=residual, gate_channels=gate, skip_channels=skip, dilations=(1, 9))
    spec = GatedStackSpec(**(SMALL | widths | shape), dtype=dtype)
    stack, stack64 = make_stack(spec)
    stack64.load_state_dict(stack.state_dict())
    x, c, extras = make_inputs(spec, 33)
    named = {"c": c} | {name: extras[name] for name in ("g", "u", "lengths")}
    out = stack_on(stack_machine)(x, pack_gated_stack(stack.weights(), spec), spec, **named)
    named64 = to64({"x": x} | named)
    exact = gated_stack_ref(weights=stack64.weights(), spec=in_float32(spec), **named64)
    assert_close(out, stack(x, **named), stack64(**named64), None if dtype == "float32" else exact)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_gated_stack_reaches_far_back(stack_machine, kernel_size, dtype):
    """Dilations up to 2^14, into a state that is full."""
    shape = dict(residual_channels=5, gate_channels=6, skip_channels=7, head_channels=(7, 2), kernel_size=kernel_size)
    spec = GatedStackSpec(**(SMALL | shape | dict(dilations=(2**14, 1, 2**13))), dtype=dtype)
    stack, stack64 = make_stack(spec)
    stack64.load_state_dict(stack.state_dict())
    x, c, _ = make_inputs(spec, 40)
    full = torch.randn(2, spec.state_size).bfloat16().float()  # rounding it again changes nothing
    states = {name: full.clone() for name in ("op", "float32")}
    out = stack_on(stack_machine)(x, pack_gated_stack(stack.weights(), spec), spec, c=c, state=states["op"])
    in_torch = stack(x, c, state=states["float32"])
    exact = gated_stack_ref(x.double(), stack64.weights(), in_float32(spec), c=c.double(), state=full.double())
    reference = stack64(x.double(), c.double(), state=full.double())
    assert_close(out, in_torch, reference, None if dtype == "float32" else exact)
    tolerance = 2e-5 if dtype == "float32" else 0.02
    torch.testing.assert_close(states["op"], states["float32"], rtol=tolerance, atol=tolerance)


def test_gated_stack_reaches_far_ahead(stack_machine):
    """A centred dilation of 2^14."""
    if stack_machine == "emulated-sm75":
        return  # slow
    shape = dict(residual_channels=5, gate_channels=6, skip_channels=7, head_channels=(7, 2), causal=False)
    spec = GatedStackSpec(**(SMALL | shape | dict(dilations=(2**14, 1))))
    stack, stack64 = make_stack(spec)
    stack64.load_state_dict(stack.state_dict())
    x, c, _ = make_inputs(spec, 40 if stack_machine in EMULATED else 40_000, batch=1)
    out = stack_on(stack_machine)(x, pack_gated_stack(stack.weights(), spec), spec, c=c)
    assert_close(out, stack(x, c), stack64(x.double(), c.double()))


@pytest.mark.parametrize("seed", [1, 42])
@pytest.mark.parametrize("shape", [{}, dict(causal=False)], ids=["causal", "centred"])
@pytest.mark.parametrize("stack_machine", ["emulated-sm90"], indirect=True)
def test_a_tile_waits_for_room(stack_machine, shape, seed):
    """No layer waits for another tile, so a fast block would soon be a ring's length ahead of a slow one."""
    emulated_cuda.emulator.configure(sm_count=2, seed=seed)
    spec = GatedStackSpec(**(SMALL | SHAPES["tiny"] | dict(kernel_size=1, dilations=(1, 1, 1)) | shape))
    stack, stack64 = make_stack(spec)
    stack64.load_state_dict(stack.state_dict())
    x, c, _ = make_inputs(spec, 2500, batch=1)
    out = gated_stack(x, pack_gated_stack(stack.weights(), spec), spec, c=c)
    assert_close(out, stack(x, c), stack64(x.double(), c.double()))


@pytest.mark.parametrize("stack_machine", ["emulated-sm90"], indirect=True)
def test_a_tiles_wait_in_vain_is_an_error(stack_machine):
    """On a device whose clock runs fast, who has to wait gives up."""
    emulated_cuda.emulator.configure(sm_count=2, seed=1, nanoseconds_per_round=10**9)
    spec = GatedStackSpec(**(SMALL | SHAPES["tiny"]))
    stack, _ = make_stack(spec)
    x, c, _ = make_inputs(spec, 600)
    with pytest.raises(RuntimeError, match="trap"):
        gated_stack(x, pack_gated_stack(stack.weights(), spec), spec, c=c)


@pytest.mark.parametrize("dtype", DTYPES)
def test_deep_conditioning_has_the_bits_of_one_product(isa, dtype):
    """More channels than gated_stack multiplies at once; project takes them all."""
    spec = GatedStackSpec(**(SMALL | SHAPES["tiny"] | dict(cond_channels=4300)), dtype=dtype)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    x, c, _ = make_inputs(spec, 100, batch=1)
    expected = gated_stack(x, weights, spec, projected=project(c, weights, spec))
    for threads in (1, 2):
        assert torch.equal(gated_stack(x, weights, spec, c=c, threads=threads), expected)


@pytest.mark.parametrize("shape", [{}, dict(causal=False)], ids=["causal", "centred"])
@pytest.mark.parametrize("stack_machine", ["emulated-sm90"], indirect=True)
def test_places_in_rings_are_used_again(stack_machine, shape):
    """Two blocks, each with four or more tiles of a row."""
    emulated_cuda.emulator.configure(sm_count=2, seed=5)
    spec = GatedStackSpec(**(SMALL | SHAPES["tiny"] | dict(dilations=(100, 1)) | shape))
    plan = emulated_cuda.cuda.gated_stack_plan(arguments(spec), 1, 1000, 1000, True, 0)
    assert (plan["blocks"], plan["columns"]) == (2, 128)
    stack, stack64 = make_stack(spec)
    stack64.load_state_dict(stack.state_dict())
    x, c, _ = make_inputs(spec, 1000, batch=1)
    out = gated_stack(x, pack_gated_stack(stack.weights(), spec), spec, c=c)
    assert_close(out, stack(x, c), stack64(x.double(), c.double()))


# Every kernel of gated_stack, by the device that takes it for 300 columns; with rows and depths that are not whole
# slabs, and more panels than a block makes at once.
TILES = {
    "mma, 128 columns": ("bfloat16", dict(sm=90, sm_count=3)),
    "mma, 64 columns": ("bfloat16", dict(sm=80, sm_count=5, shared_bytes=100_000)),
    "mma, 32 columns": ("bfloat16", dict(sm=80, sm_count=40, shared_bytes=50_000)),
    "32 columns": ("bfloat16", dict(sm=75, sm_count=1, shared_bytes=64_000)),
    "128 columns": ("float32", dict(sm=90, sm_count=2)),
}


@pytest.mark.parametrize("kernel", TILES)
@pytest.mark.parametrize("shape", [dict(kernel_size=2, dilations=(64, 1, 200)), dict(causal=False, dilations=(2, 64))])
@pytest.mark.parametrize("stack_machine", ["emulated-sm90"], indirect=True)
def test_tiles(stack_machine, kernel, shape):
    dtype, device = TILES[kernel]
    emulated_cuda.emulator.configure(**device, seed=3)
    wide = dict(residual_channels=70, gate_channels=72, skip_channels=5, cond_channels=37, head_channels=(5, 2))
    spec = GatedStackSpec(**(SMALL | wide | shape), dtype=dtype)
    plan = emulated_cuda.cuda.gated_stack_plan(arguments(spec), 1, 300, 300, True, 0)
    assert plan["kernel"] == kernel
    stack, stack64 = make_stack(spec)
    stack64.load_state_dict(stack.state_dict())
    x, c, _ = make_inputs(spec, 300, batch=1)
    out = gated_stack(x, pack_gated_stack(stack.weights(), spec), spec, c=c)
    exact = gated_stack_ref(x.double(), stack64.weights(), in_float32(spec), c=c.double())
    assert_close(out, stack(x, c), stack64(x.double(), c.double()), None if dtype == "float32" else exact)


def test_gated_stack_rows_do_not_depend_on_batch_or_threads(stack_machine):
    run = stack_on(stack_machine)
    spec = GatedStackSpec(**SMALL)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    x, c, _ = make_inputs(spec, 200, batch=5)
    lengths = torch.tensor([200, 1, 0, 37, 150])
    together = run(x, weights, spec, c=c, lengths=lengths, threads=3)
    for row, length in enumerate(lengths.tolist()):
        alone = run(x[row : row + 1, :, :length], weights, spec, c=c[row : row + 1, :, :length])
        assert torch.equal(together[row, :, :length], alone[0])
        assert not together[row, :, length:].any()


# threads share a row's layers; or the rows of a layer's weights, where it has many
MANY_WEIGHTS = dict(residual_channels=304, gate_channels=304, skip_channels=32, dilations=(1, 4), head_channels=(32, 2))
MANY_WEIGHTS_SEPARABLE = MANY_WEIGHTS | dict(separable=True, residual_channels=640, gate_channels=336)
SHARED = {name: SHAPES[name] for name in ("plain", "repeat", "centred", "affine-output", "no-skip", "tiny")}
SHARED |= {name: SHAPES[name] for name in ("separable", "interpolated")}
SHARED |= {"many-weights": MANY_WEIGHTS, "many-weights-interpolated": MANY_WEIGHTS | SHAPES["interpolated"]}
SHARED |= {"many-weights-separable": MANY_WEIGHTS_SEPARABLE}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHARED)
def test_one_row_on_several_threads_is_the_same_to_the_bit(isa, shape, dtype):
    spec = GatedStackSpec(**(SMALL | SHARED[shape]), dtype=dtype)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    x, c, extras = make_inputs(spec, 250, batch=1)
    for named in ({}, {"u": extras["u"], "g": extras["g"]}):
        named = named | required(spec, extras)
        alone = gated_stack(x, weights, spec, c=c, **named)
        for threads in (2, 3, 40):
            assert torch.equal(gated_stack(x, weights, spec, c=c, threads=threads, **named), alone)


@pytest.mark.parametrize("threads", [2, 3, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["plain", "repeat", "centred", "separable", "no-skip"])
def test_a_long_row_in_pieces_on_several_threads_is_the_same_to_the_bit(shape, dtype, threads):
    """So long that every ring between two threads' layers is used many times over."""
    spec = GatedStackSpec(**(SMALL | SHAPES[shape] | dict(dilations=(1, 2, 4, 8, 16, 3) * 3)), dtype=dtype)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    x, c, extras = make_inputs(spec, 7680, batch=1)
    whole = gated_stack(x, weights, spec, c=c, u=extras["u"])
    state, out, taken, pieces = initial_state(spec, 1), [], 0, (1440, 96, 2400, 3744)
    for i, piece in enumerate(pieces):
        pending, last = min(taken, spec.look_ahead), i + 1 == len(pieces)
        first, end = taken - pending, taken + piece
        columns = c[..., first // spec.cond_repeat : -(-end // spec.cond_repeat)]
        named = dict(state=state, pending=pending, last=last, u=extras["u"], threads=threads)
        out.append(gated_stack(x[..., taken:end], weights, spec, c=columns, **named))
        taken = end
    assert torch.equal(torch.cat(out, 2), whole)


PARALLEL = {
    "clarinet-student-1": ClariNetStudentConfig.student_1(),
    "clarinet-student-2": ClariNetStudentConfig.student_2(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PARALLEL)
def test_gated_stack_at_full_size(stack_machine, name, dtype):
    if stack_machine in EMULATED:
        pytest.skip("too slow")
    skip_on_cuda(stack_machine, dtype)
    torch.manual_seed(0)
    model = models.ClariNetStudent(PARALLEL[name]).requires_grad_(False)
    flow = model.flows[-1]
    flow.spec = dataclasses.replace(flow.spec, dtype=dtype)
    x, c = torch.randn(1, 1, 1500), torch.rand(1, 80, 1500)
    out = stack_on(stack_machine)(x, pack_gated_stack(flow.weights(), flow.spec), flow.spec, c=c)
    double = GatedStack(flow.spec).double().requires_grad_(False)
    double.load_state_dict(flow.state_dict())
    reference = double(x.double(), c.double())
    double.spec = in_float32(flow.spec)
    exact = None if dtype == "float32" else double(x.double(), c.double())
    assert_close(out, flow(x, c), reference, exact)


def test_reference_of_a_changed_spec_differs():
    """The comparison can fail: another residual scale is another function."""
    spec = GatedStackSpec(**SMALL)
    stack, _ = make_stack(spec)
    x, c, _ = make_inputs(spec, 50)
    out = gated_stack(x, pack_gated_stack(stack.weights(), spec), spec, c=c)
    other = gated_stack_ref(x, stack.weights(), dataclasses.replace(spec, residual_scale=1.0), c=c)
    assert error(out, other.double()) > 1e-3


@pytest.mark.parametrize("shape", ["plain", "no-skip"])
def test_nan_comes_out_as_nan(stack_machine, shape):
    spec = GatedStackSpec(**(SMALL | SHAPES[shape]))
    stack, _ = make_stack(spec)
    x, c, _ = make_inputs(spec, 60)
    x[0, 0, 30] = math.nan
    out = stack_on(stack_machine)(x, pack_gated_stack(stack.weights(), spec), spec, c=c)
    assert torch.equal(out.isnan(), stack(x, c).isnan())
    assert out[0].isnan().any() and not out[1].isnan().any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stacks_in_a_cuda_graph(dtype):
    """Two of them, one after the other, with state: each replay is the next part of a stream."""
    if not (has_cuda() and torch.cuda.is_available()):
        pytest.skip("no CUDA device")
    spec = GatedStackSpec(**SMALL, epilogue="affine", dtype=dtype)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec).cuda()
    x, c, _ = make_inputs(spec, 300)
    parts = [[x.cuda(), c.cuda()] for x, c in zip(x.split(100, 2), c.split(100, 2), strict=True)]

    def run(x, c, states):
        for state in states:
            x = gated_stack(x, weights, spec, c=c, state=state)
        return x

    first = initial_state(spec, 2, device="cuda")
    states = [first.clone() for _ in range(2)]
    expected = [run(x, c, states) for x, c in parts]
    given, states = [tensor.clone() for tensor in parts[0]], [first.clone() for _ in range(2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*given, states)
    for part, right in zip(parts, expected, strict=True):
        for held, new in zip(given, part, strict=True):
            held.copy_(new)
        graph.replay()
        assert torch.equal(out, right)


def test_gated_stack_and_project_pass_opcheck():
    spec = GatedStackSpec(**SMALL)
    stack, _ = make_stack(spec)
    weights = pack_gated_stack(stack.weights(), spec)
    x, c, _ = make_inputs(spec, 40)
    keywords = dict(reverse=False, pending=0, last=True, threads=1, **arguments(spec))
    for state, changes in ((None, {}), (initial_state(spec, 2), {}), (initial_state(spec, 2), {"causal": False})):
        keywords |= changes | {"last": not changes}
        if changes:
            state = initial_state(dataclasses.replace(spec, **changes), 2)
        tensors = (x, weights, c, None, None, None, None, None, None, state)
        torch.library.opcheck(torch.ops.fastwave.gated_stack.default, tensors, keywords, test_utils=OPCHECKS)

    keywords = dict(threads=1, **arguments(spec))
    torch.library.opcheck(torch.ops.fastwave.project.default, (c, weights, None), keywords, test_utils=OPCHECKS)
