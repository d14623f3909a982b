import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from fastwave.layers import GatedStack
from fastwave.ops.gated_stack import GatedStackSpec, gated_stack_ref, initial_state

TIME = 36
BASE = dict(
    residual_channels=4,
    gate_channels=5,
    skip_channels=6,
    kernel_size=2,
    dilations=(1, 2, 4),
    cond_channels=3,
    head_channels=(5, 2),
    head_relu=(True, True),
)
CAUSAL = {
    "plain": {},
    "wide front": dict(front_width=5, front_relu=True, residual_scale=1.0),
    "kernel 3": dict(kernel_size=3, dilations=(1, 3, 1), in_channels=2),
    "kernel 1": dict(kernel_size=1, dilations=(1, 1)),
    "one layer": dict(dilations=(7,), head_channels=(3,), head_relu=(False,)),
    "no skip": dict(skip_channels=0),
    "separable": dict(separable=True),
    "unconditional": dict(cond_channels=0),
    "repeated conditioning": dict(cond_repeat=4),
    "input delay": dict(front_width=3, delay="input"),
    "narrow input delay": dict(delay="input", epilogue="affine"),
    "affine": dict(epilogue="affine"),
    "inverse": dict(epilogue="inverse", epilogue_order="log_sigma", head_channels=(5, 6)),
    "affine, output delay": dict(front_width=4, front_relu=True, epilogue="affine", delay="output"),
    "inverse, output delay": dict(epilogue="inverse", epilogue_order="log_sigma", delay="output"),
}
CENTRED = {
    "centred": dict(kernel_size=3, causal=False),
    "centred front": dict(kernel_size=3, causal=False, front_causal=False, front_width=5, epilogue="inverse"),
    "centred separable": dict(kernel_size=5, causal=False, separable=True, skip_channels=0),
    "centred coupling": dict(
        kernel_size=3, causal=False, in_channels=2, epilogue="affine", head_channels=(6,), head_relu=(False,)
    ),
}
causal_stacks = pytest.mark.parametrize("shape", CAUSAL.values(), ids=CAUSAL)
all_stacks = pytest.mark.parametrize("shape", (CAUSAL | CENTRED).values(), ids=CAUSAL | CENTRED)


def make(shape, batch=2, time=TIME, seed=0):
    """A spec, random weights, x and the named tensors that the spec reads, in float64."""
    spec = GatedStackSpec(**(BASE | shape))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = GatedStack(spec).double().requires_grad_(False).weights()

        def normal(*size):
            return torch.randn(batch, *size, dtype=torch.float64)

        columns = -(-time // spec.cond_repeat)
        named = {
            "g": normal(spec.layers, 2 * spec.gate_channels),
            "u": normal(spec.layers, spec.residual_channels),
        }
        if spec.cond_channels:
            named["c"] = normal(spec.cond_channels, columns)
        if spec.epilogue != "none":
            named["y"] = normal(spec.out_channels, time)
        return spec, weights, normal(spec.in_channels, time), named


def window(named, spec, start, stop):
    """The named tensors of samples [start, stop)."""
    spans = {"y": (start, stop), "c": (start // spec.cond_repeat, -(-stop // spec.cond_repeat))}
    return {name: v[..., slice(*spans[name])] if name in spans else v for name, v in named.items()}


def assert_same(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


# the equations -------------------------------------------------------------------------------------------------------


def test_is_the_field_s_module():
    """The module's equations, written once more with torch's own convolutions."""
    spec, w, x, named = make(dict(kernel_size=3, front_width=4, front_relu=True))
    c, g, u = named["c"], named["g"], named["u"]
    conv1d, pad = torch.nn.functional.conv1d, torch.nn.functional.pad
    h = conv1d(pad(x, (3, 0)), w.front, w.front_bias).relu()
    skip = 0
    for i, d in enumerate(spec.dilations):
        a = conv1d(pad(h + u[:, i, :, None], (2 * d, 0)), w.conv[i], w.conv_bias[i], dilation=d)
        a = a + conv1d(c, w.cond[i][..., None]) + g[:, i, :, None]
        z = a[:, :5].tanh() * a[:, 5:].sigmoid()
        skip = skip + conv1d(z, w.skip[i][..., None], w.skip_bias[i])
        if i < 2:
            h = (h + conv1d(z, w.residual[i][..., None], w.residual_bias[i])) * math.sqrt(0.5)
    for weight, bias in zip(w.head, w.head_bias, strict=True):
        skip = conv1d(skip.relu(), weight[..., None], bias)
    assert_same(gated_stack_ref(x, w, spec, **named), skip)


@pytest.mark.parametrize("epilogue", ["affine", "inverse"])
@pytest.mark.parametrize("delay", ["none", "input", "output"])
def test_epilogue(epilogue, delay):
    spec, weights, x, named = make(dict(epilogue=epilogue, delay=delay, epilogue_order="log_sigma"))
    inner = dataclasses.replace(spec, epilogue="none", delay="input" if delay == "input" else "none")
    log_sigma, mu = gated_stack_ref(x, weights, inner, **named).chunk(2, 1)
    if delay == "output":
        log_sigma, mu = log_sigma.roll(1, 2), mu.roll(1, 2)
    y = named["y"]
    expected = y * log_sigma.exp() + mu if epilogue == "affine" else (y - mu) / log_sigma.exp()
    if delay == "output":
        expected[..., 0] = 0
    assert_same(gated_stack_ref(x, weights, spec, **named), expected)


def test_the_epilogue_reads_x_without_y():
    spec, weights, x, named = make(dict(epilogue="affine"))
    assert_same(
        gated_stack_ref(x, weights, spec, **(named | {"y": None})),
        gated_stack_ref(x, weights, spec, **(named | {"y": x})),
    )


def test_inverse_undoes_affine():
    spec, weights, x, named = make(dict(epilogue="affine", kernel_size=3, causal=False))
    z = gated_stack_ref(x, weights, spec, **named)
    named["y"], y = z, named["y"]
    assert_same(gated_stack_ref(x, weights, dataclasses.replace(spec, epilogue="inverse"), **named), y)


def test_separable_is_a_dense_convolution():
    spec, weights, x, named = make(dict(separable=True, kernel_size=3))
    products = [w[..., 0] for w in weights.conv]
    dense = dataclasses.replace(
        weights,
        conv=[p[:, :, None] * d for p, d in zip(products, weights.depthwise, strict=True)],
        conv_bias=[b + p @ d for b, p, d in zip(weights.conv_bias, products, weights.depthwise_bias, strict=True)],
    )
    expected = gated_stack_ref(x, dense, dataclasses.replace(spec, separable=False), **named)
    assert_same(gated_stack_ref(x, weights, spec, **named), expected)


@pytest.mark.parametrize("repeat", [1, 4])
@pytest.mark.parametrize("taps", [1, 3])
def test_interpolated_conditioning(taps, repeat):
    """Interpolating A_l c is interpolating c."""
    spec, weights, x, named = make(dict(cond_repeat=repeat))
    columns = torch.randn(2, spec.cond_channels, TIME // repeat + taps - 1, dtype=torch.float64)
    interpolation = torch.randn(2, TIME, taps, dtype=torch.float64)
    place = torch.arange(TIME)[:, None] // repeat + torch.arange(taps)
    interpolated = dict(cond_repeat=repeat, cond_taps=taps)
    result = gated_stack_ref(
        x,
        weights,
        dataclasses.replace(spec, **interpolated),
        **(named | {"c": columns}),
        interpolation=interpolation,
    )
    named["c"] = (columns[:, :, place] * interpolation[:, None]).sum(3)
    assert_same(result, gated_stack_ref(x, weights, dataclasses.replace(spec, cond_repeat=1), **named))


@pytest.mark.parametrize("time", [TIME, TIME - 1, TIME - 3, 1])
def test_repeated_conditioning(time):
    spec, weights, x, named = make(dict(cond_repeat=4), time=time)
    result = gated_stack_ref(x, weights, spec, **named)
    repeated = named["c"].repeat_interleave(4, -1)[..., :time]
    assert_same(
        gated_stack_ref(x, weights, dataclasses.replace(spec, cond_repeat=1), **(named | {"c": repeated})), result
    )


def test_gradients():
    spec, weights, x, named = make(dict(epilogue="affine", delay="input"), time=6)
    x.requires_grad_()
    named = {name: v.requires_grad_() for name, v in named.items()}
    assert torch.autograd.gradcheck(
        lambda x, *values: gated_stack_ref(x, weights, spec, **dict(zip(named, values, strict=True))),
        (x, *named.values()),
    )


@pytest.mark.parametrize("shape", [{}, dict(skip_channels=0), dict(epilogue="affine", delay="input")], ids=str)
def test_autocast_is_for_the_products_of_layers(shape):
    """What goes by them is exact, though bfloat16 could not hold it; and what they make is near."""
    spec, _, x, named = make(shape)
    module = GatedStack(spec)
    x, named = x.float(), {name: v.float() for name, v in named.items()}

    def run(weights):
        plain = gated_stack_ref(x, weights, spec, **named)
        with torch.autocast("cpu", torch.bfloat16):
            cast = gated_stack_ref(x, weights, spec, **named)
        assert cast.dtype == torch.float32
        return plain, cast

    plain, cast = run(module.weights())
    assert 0 < (plain - cast).abs().max() < 0.02 * plain.abs().max()
    with torch.no_grad():
        for layer in (*module.residual, *getattr(module, "skip", ())):
            layer.weight.zero_()
            layer.bias.fill_(0.125)
    plain, cast = run(module.weights())
    assert torch.equal(plain, cast)


# what a column depends on --------------------------------------------------------------------------------------------


@causal_stacks
def test_a_causal_column_reads_its_receptive_field(shape):
    spec, weights, x, named = make(shape)
    changed, at = x.clone(), 11
    changed[..., at] += 1
    moved = (
        (gated_stack_ref(changed, weights, spec, **named) != gated_stack_ref(x, weights, spec, **named)).any(1).all(0)
    )
    first = at + (spec.delay != "none")
    expected = range(first, min(TIME, first + spec.receptive_field))
    reached = moved.nonzero().flatten().tolist()
    assert reached[0] == expected[0] and reached[-1] == expected[-1]


@pytest.mark.parametrize("shape", CENTRED.values(), ids=CENTRED)
def test_a_centred_column_reads_both_sides(shape):
    spec, weights, x, named = make(shape, time=60)
    changed, at = x.clone(), 30
    changed[..., at] += 1
    moved = (
        (gated_stack_ref(changed, weights, spec, **named) != gated_stack_ref(x, weights, spec, **named)).any(1).all(0)
    )
    reached, half = moved.nonzero().flatten().tolist(), (spec.receptive_field - 1) // 2
    assert (reached[0], reached[-1]) == (at - half, at + half)


@causal_stacks
def test_causal_in_conditioning(shape):
    spec, weights, x, named = make(shape)
    if "c" not in named:
        return
    changed, at = named["c"].clone(), 2
    changed[..., at] += 1
    moved = (
        (gated_stack_ref(x, weights, spec, **(named | {"c": changed})) != gated_stack_ref(x, weights, spec, **named))
        .any(1)
        .any(0)
    )
    assert moved.nonzero()[0].item() == at * spec.cond_repeat + (spec.delay == "output")


# state ---------------------------------------------------------------------------------------------------------------


@causal_stacks
@pytest.mark.parametrize("splits", [[4], [4, 8, 12, 32], [0, 20, 20], range(4, TIME, 4)], ids=str)
def test_state_joins_calls(shape, splits):
    spec, weights, x, named = make(shape)
    state = initial_state(spec, len(x), dtype=x.dtype)
    assert state.shape == (2, spec.state_size)
    edges = [0, *splits, TIME]
    pieces = [
        gated_stack_ref(x[..., start:stop], weights, spec, state=state, **window(named, spec, start, stop))
        for start, stop in pairwise(edges)
    ]
    assert_same(torch.cat(pieces, -1), gated_stack_ref(x, weights, spec, **named))


@pytest.mark.parametrize("shape", [v for v in CAUSAL.values() if "cond_repeat" not in v])
def test_state_joins_single_columns(shape):
    spec, weights, x, named = make(shape)
    state = initial_state(spec, len(x), dtype=x.dtype)
    columns = [
        gated_stack_ref(x[..., t : t + 1], weights, spec, state=state, **window(named, spec, t, t + 1))
        for t in range(TIME)
    ]
    assert_same(torch.cat(columns, -1), gated_stack_ref(x, weights, spec, **named))


def test_state_needs_a_causal_stack():
    spec, weights, x, named = make(CENTRED["centred"])
    with pytest.raises(ValueError, match="state must be None: the reference takes a centred stack"):
        gated_stack_ref(x, weights, spec, state=initial_state(spec, 2, dtype=x.dtype), **named)


# reverse and lengths -------------------------------------------------------------------------------------------------


@all_stacks
def test_reverse_is_a_flip(shape):
    spec, weights, x, named = make(shape)
    flipped = {name: v.flip(-1) if name in ("c", "y") else v for name, v in named.items()}
    expected = gated_stack_ref(x.flip(-1), weights, spec, **flipped).flip(-1)
    assert_same(gated_stack_ref(x, weights, spec, reverse=True, **named), expected)


@all_stacks
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("vectors", [False, True], ids=["", "g and u"])
def test_ragged_rows_equal_rows_alone(shape, reverse, vectors):
    lengths = torch.tensor([TIME - 8, TIME, 4, 12])
    spec, weights, x, named = make(shape, batch=4)
    if not vectors:
        del named["g"], named["u"]
    rows = [
        gated_stack_ref(
            x[i : i + 1, :, :n],
            weights,
            spec,
            reverse=reverse,
            **window({name: v[i : i + 1] for name, v in named.items()}, spec, 0, n),
        )
        for i, n in enumerate(lengths.tolist())
    ]
    for i, n in enumerate(lengths.tolist()):  # whatever the padding holds
        x[i, :, n:] = math.nan
        if "y" in named:
            named["y"][i, :, n:] = math.nan
        if "c" in named:
            named["c"][i, :, n // spec.cond_repeat :] = math.nan
    result = gated_stack_ref(x, weights, spec, lengths=lengths, reverse=reverse, **named)
    for row, alone, n in zip(result, rows, lengths.tolist(), strict=True):
        assert_same(row[:, :n], alone[0])
        assert not row[:, n:].any()


# the spec ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(in_channels=0), "in_channels must be at least 1, got 0"),
        (dict(front_width=0), "front_width must be at least 1, got 0"),
        (dict(residual_channels=0), "residual_channels must be at least 1, got 0"),
        (dict(gate_channels=0), "gate_channels must be at least 1, got 0"),
        (dict(kernel_size=0), "kernel_size must be at least 1, got 0"),
        (dict(cond_repeat=0), "cond_repeat must be at least 1, got 0"),
        (dict(skip_channels=-1), "skip_channels must not be negative, got -1"),
        (dict(cond_channels=-1), "cond_channels must not be negative, got -1"),
        (dict(dilations=()), "skip_channels must be 0 in a stack without layers, got 6"),
        (dict(dilations=(1, 0)), "dilations must be positive integers, got (1, 0)"),
        (dict(head_channels=(0, 2)), "head_channels must be positive integers, got (0, 2)"),
        (dict(head_relu=(True,)), "head_relu must have 2 entries, got 1"),
        (dict(front_causal=False, front_width=2), "front_width of a centred front must be odd, got 2"),
        (dict(causal=False), "kernel_size of a centred stack must be odd, got 2"),
        (dict(epilogue="exp"), "epilogue must be one of none, affine, inverse, got 'exp'"),
        (dict(epilogue_order="sigma"), "epilogue_order must be one of mu, log_sigma, got 'sigma'"),
        (dict(delay="both"), "delay must be one of none, input, output, got 'both'"),
        (dict(epilogue="affine", head_channels=(5, 3)), "head_channels must end in an even number for a flow, got 3"),
        (dict(delay="output"), "delay 'output' needs an epilogue"),
    ],
)
def test_spec_errors(changes, message):
    with pytest.raises(ValueError) as error:
        GatedStackSpec(**(BASE | changes))
    assert str(error.value) == message


def test_spec_holds_tuples():
    spec = GatedStackSpec(**(BASE | dict(dilations=[1, 2], head_channels=[5, 2], head_relu=[True, False])))
    assert spec == GatedStackSpec(**(BASE | dict(dilations=(1, 2), head_relu=(True, False))))
    assert hash(spec) == hash(dataclasses.replace(spec))
