"""One row per message: what a user does wrong, and the one line that says so."""

import dataclasses

import pytest
import torch
from refusals import assert_refused

import fastwave
from fastwave import _cpu, models
from fastwave.audio import MelSpec
from fastwave.layers import GatedStack
from fastwave.models import ClariNetStudentConfig, WaveNetConfig
from fastwave.ops.custom import arguments
from fastwave.ops.gated_stack import OPTIONAL, GatedStackSpec, gated_stack, initial_state
from fastwave.ops.project import project
from fastwave.ops.upsample import UpsampleSpec, upsample
from fastwave.ops.wavenet_sample import HeadSpec, initial_sampler_state, wavenet_sample
from fastwave.pack import pack_gated_stack

MEL = MelSpec(n_mels=6, hop_length=16, n_fft=64, win_length=64, sample_rate=8000, fmax=4000.0)
WAVENET = dict(mel=MEL, residual_channels=4, gate_channels=4, skip_channels=4, kernel_size=2, dilations=(1, 2))
WAVENET |= dict(upsample_scales=(16,))
STUDENT = dict(mel=MEL, flows=((1, 2),), upsample_scales=(16,), residual_channels=4, gate_channels=4, skip_channels=4)


def make(**changes):
    return models.WaveNet(WaveNetConfig(**(WAVENET | changes))).requires_grad_(False)


VOCODER = fastwave.Vocoder(make())
TWO_FLOWS = STUDENT | dict(flows=[(1, 2), (1, 2)])
REVERSED = fastwave.Vocoder(models.ClariNetStudent(ClariNetStudentConfig(**TWO_FLOWS, time_reversal=True)))
SPEAKERS = fastwave.Vocoder(make(speakers=3, speaker_channels=2))
mel = torch.full((2, 6, 4), 0.5)
wave = torch.zeros(2, 64)
ids = torch.tensor([0, 1])

VOCODER_ERRORS = {
    "model": (
        lambda: fastwave.Vocoder(torch.nn.Linear(1, 1)),
        "model must be one of fastwave.models, got Linear",
    ),
    "device": (lambda: fastwave.Vocoder(make(), device="tpu"), "device must be cpu, cuda or cuda:N, got 'tpu'"),
    "device-meta": (lambda: fastwave.Vocoder(make(), device="meta"), "device must be cpu, cuda or cuda:N, got 'meta'"),
    "no-such-device": (lambda: fastwave.Vocoder(make(), device="cuda:99"), "device must be cpu, as "),
    "dtype": (
        lambda: fastwave.Vocoder(make(), dtype="float16"),
        "dtype must be one of float32, bfloat16, int8, got 'float16'",
    ),
    "threads": (lambda: fastwave.Vocoder(make(), threads=0), "threads must be at least 1, got 0"),
    "bands": (lambda: VOCODER.generate(torch.zeros(2, 64, 100)), "mel must be (batch, 6, frames), got (2, 64, 100)"),
    "rank": (lambda: VOCODER.generate(torch.zeros(6, 100)), "mel must be (batch, 6, frames), got (6, 100)"),
    "no-frames": (lambda: VOCODER.generate(mel[..., :0]), "mel must not be empty, got (2, 6, 0)"),
    "integers": (lambda: VOCODER.generate(mel.long()), "mel must be"),
    "nan": (lambda: VOCODER.generate(mel * float("nan")), "mel must be finite"),
    "infinite": (lambda: VOCODER.generate(mel / 0), "mel must be finite"),
    "elsewhere": (lambda: VOCODER.generate(mel.to("meta")), "mel must be on cpu, got meta"),
    "not-a-tensor": (lambda: VOCODER.generate([[1.0]]), "mel must be"),
    "noise-shape": (lambda: VOCODER.generate(mel, noise=torch.zeros(2, 5)), "noise must be (2, 64), got (2, 5)"),
    "noise-nan": (
        lambda: VOCODER.generate(mel, noise=torch.full((2, 64), float("nan"))),
        "noise must be finite, got NaN or infinity",
    ),
    "seed": (lambda: VOCODER.generate(mel, seed=-1), "seed must be"),
    "temperature": (lambda: VOCODER.generate(mel, temperature=-1.0), "temperature must be at least 0, got -1.0"),
    "lengths": (
        lambda: VOCODER.generate(mel, lengths=torch.tensor([5, 1])),
        "lengths must be 2 integers between 0 and 4, got [5, 1]",
    ),
    "lengths-shape": (lambda: VOCODER.generate(mel, lengths=torch.tensor([4])), "lengths must be 2 integers"),
    "lengths-dtype": (lambda: VOCODER.generate(mel, lengths=torch.tensor([4.0, 1])), "lengths must be 2 integers"),
    "speaker": (
        lambda: VOCODER.generate(mel, speaker=ids),
        "speaker must be None: this model has no global conditioning",
    ),
    "no-speaker": (lambda: SPEAKERS.generate(mel), "speaker must be ids (batch,) or embeddings (batch, channels, 1)"),
    "speaker-id": (lambda: SPEAKERS.generate(mel, speaker=ids + 2), "speaker must be ids below 3, got [2, 3]"),
    "student-speaker": (lambda: REVERSED.generate(mel, speaker=ids), "speaker must be None"),
    "stream-reversed": (lambda: REVERSED.stream([mel]), "stream needs a model that runs forwards in time"),
    "stream-batch": (
        lambda: list(VOCODER.stream([mel, mel[:1]])),
        "mel_chunks must all have batch 2, got 1",
    ),
    "wave-rank": (lambda: VOCODER.mel(torch.zeros(2, 3, 100)), "wave must be (batch, samples), got (2, 3, 100)"),
    "training-wave": (
        lambda: make().loss(torch.zeros(2, 63), mel),
        "wave must be (2, 64), as mel has 4 frames, got (2, 63)",
    ),
    "training-batch": (
        lambda: make()(torch.zeros(3, 64), mel),
        "wave must be (2, 64), as mel has 4 frames, got (3, 64)",
    ),
    "training-context": (
        lambda: make(upsample_context=1)(torch.zeros(2, 64), mel),
        "wave must be (2, 32), as mel has 2 frames + 2 of context, got (2, 64)",
    ),
    "training-mel": (lambda: make().loss(wave, mel[:, 1:]), "mel must be (batch, 6, frames), got (2, 5, 4)"),
    "training-past": (
        lambda: make().loss(wave, mel, past=wave[:, 1:]),
        "past must be (2, 64), as mel has 4 frames, got (2, 63)",
    ),
    "training-beta": (
        lambda: make(distribution="mixture_of_gaussians", components=2).loss(wave, mel, beta=0.5),
        "beta must be 0 where the distribution is 'mixture_of_gaussians', got 0.5",
    ),
    "hop": (
        lambda: WaveNetConfig(**(WAVENET | {"upsample_scales": (3,)})),
        "upsample_scales and cond_repeat must multiply to hop_length 16, got 3",
    ),
    "distribution": (lambda: make(distribution="cauchy"), "distribution must be one of"),
    "one-hot": (lambda: make(one_hot_input=True), "one_hot_input needs distribution 'softmax', got 'gaussian'"),
    "initial-class": (lambda: make(initial_class=3), "initial_class must be one of"),
    "upsampler": (
        lambda: make(upsampler="cubic"),
        "upsampler must be one of transposed, stretched, nearest, got 'cubic'",
    ),
    "reversed-zero": (
        lambda: ClariNetStudentConfig(**STUDENT, time_reversal=True, first_sample="zero"),
        "first_sample must be 'net' with time_reversal, got 'zero'",
    ),
    "first-sample": (
        lambda: ClariNetStudentConfig(**STUDENT, first_sample="one"),
        "first_sample must be 'net' or 'zero'",
    ),
    "no-flows": (lambda: ClariNetStudentConfig(**(STUDENT | {"flows": ()})), "flows must be one list of dilations"),
}


def test_an_unknown_voice_names_the_known_ones():
    with pytest.raises(FileNotFoundError, match="no voice 'nobody': neither a folder nor one of"):
        fastwave.load("nobody")


@pytest.mark.parametrize("name", VOCODER_ERRORS)
def test_vocoder_error(name):
    assert_refused(*VOCODER_ERRORS[name])


SPEC = GatedStackSpec(
    residual_channels=4,
    gate_channels=4,
    skip_channels=4,
    kernel_size=3,
    dilations=(1, 2),
    cond_channels=3,
    cond_repeat=2,
    head_channels=(4, 2),
    head_relu=(True, True),
)
WEIGHTS = pack_gated_stack(GatedStack(SPEC).weights(), SPEC)
X, C = torch.zeros(2, 1, 10), torch.zeros(2, 3, 5)
CENTRED = GatedStackSpec(**(arguments(SPEC) | dict(causal=False)))
FLOW = GatedStackSpec(**(arguments(SPEC) | dict(in_channels=2, epilogue="affine")))
LATE = GatedStackSpec(**(arguments(CENTRED) | dict(epilogue="affine")))
LATE_WEIGHTS = pack_gated_stack(GatedStack(LATE).weights(), LATE)
INTERPOLATED = GatedStackSpec(**(arguments(SPEC) | dict(cond_taps=3)))
FLOW_WEIGHTS = pack_gated_stack(GatedStack(FLOW).weights(), FLOW)


def stack(x=X, weights=WEIGHTS, spec=SPEC, c=C, **named):
    return lambda: gated_stack(x, weights, spec, c=c, **named)


HEAD = HeadSpec(distribution="gaussian")


NOISE = torch.zeros(2, 1, 10)


def sample(noise=NOISE, weights=WEIGHTS, spec=SPEC, head=HEAD, c=C, state=None, **named):
    state = initial_sampler_state(SPEC, 2) if state is None else state
    return lambda: wavenet_sample(noise, weights, spec, head, c=c, state=state, **named)


UP = UpsampleSpec(n_mels=3, scales=(2,))


FRAMES, PHASES = torch.zeros(1, 3, 4), torch.zeros(7)


def up(mel=FRAMES, weights=PHASES, spec=UP, **named):
    return lambda: upsample(mel, weights, spec, **named)


def contiguous(dtype, shape):
    return f"must be a contiguous {dtype} tensor of shape {shape} on cpu, got"


OP_ERRORS = {
    "x-rank": (stack(x=X[0]), "x must be (batch, 1, time), got (1, 10)"),
    "x-channels": (stack(x=torch.zeros(2, 2, 10)), f"x {contiguous('float32', '(any, 1, any)')} float32 (2, 2, 10)"),
    "x-dtype": (stack(x=X.double()), f"x {contiguous('float32', '(any, 1, any)')} float64 (2, 1, 10) on cpu"),
    "x-device": (stack(x=X.to("meta")), "x must be on cpu, got meta"),
    "weights-device": (stack(weights=WEIGHTS.to("meta")), "weights must be on cpu, got meta"),
    "state-device": (sample(state=torch.zeros(2, 9, device="meta")), "state must be on cpu, got meta"),
    "weights": (stack(weights=WEIGHTS[:-1]), f"weights {contiguous('float32', f'({len(WEIGHTS)},)')}"),
    "no-c": (stack(c=None), f"c {contiguous('float32', '(2, 3, 5)')} None"),
    "c-short": (stack(c=C[..., 1:]), f"c {contiguous('float32', '(2, 3, 5)')} float32 (2, 3, 4)"),
    "c-batch": (stack(c=C[:1]), f"c {contiguous('float32', '(2, 3, 5)')} float32 (1, 3, 5)"),
    "g": (stack(g=torch.zeros(2, 2, 4)), f"g {contiguous('float32', '(2, 2, 8)')} float32 (2, 2, 4)"),
    "u": (stack(u=torch.zeros(2, 1, 4)), f"u {contiguous('float32', '(2, 2, 4)')} float32 (2, 1, 4)"),
    "y": (stack(y=X), f"y {contiguous('float32', '(2, 2, 10)')} float32 (2, 1, 10)"),
    "no-y": (stack(x=torch.zeros(2, 2, 10), weights=FLOW_WEIGHTS, spec=FLOW), "y must be given where x does not have"),
    "lengths": (stack(lengths=torch.tensor([11, 1])), "lengths must be between 0 and 10, got 11"),
    "lengths-negative": (stack(lengths=torch.tensor([1, -1])), "lengths must be between 0 and 10, got -1"),
    "lengths-dtype": (stack(lengths=torch.ones(2)), f"lengths {contiguous('int64', '(2,)')} float32 (2,) on cpu"),
    "state": (
        stack(state=torch.zeros(2, 3)),
        f"state {contiguous('float32', f'(2, {SPEC.state_size})')} float32 (2, 3)",
    ),
    "state-strided": (
        stack(state=torch.zeros(SPEC.state_size, 2).T),
        "state must be contiguous, got strides (1, 2)",
    ),
    "no-state": (stack(spec=CENTRED, last=False), "state must be a tensor, to hold what is pending, got None"),
    "pending": (
        stack(spec=CENTRED, state=initial_state(CENTRED, 2), pending=4),
        "pending must be between 0 and 3, got 4",
    ),
    "pending-causal": (stack(state=initial_state(SPEC, 2), pending=1), "pending must be between 0 and 0, got 1"),
    "pending-c": (
        stack(spec=CENTRED, state=initial_state(CENTRED, 2), pending=3),
        f"c {contiguous('float32', '(2, 3, 7)')} float32 (2, 3, 5)",
    ),
    "late-y": (
        stack(x=X, spec=LATE, weights=LATE_WEIGHTS, state=initial_state(LATE, 2)),
        "y must be given where the output lies behind x, got None",
    ),
    "projected": (
        stack(projected=torch.zeros(2, 4, 5, 16)),
        "c must be None: it is projected already, got float32 (2, 3, 5)",
    ),
    "projected-g": (
        stack(c=None, projected=torch.zeros(2, 4, 5, 16), g=torch.zeros(2, 2, 8)),
        "g must be None: it is in what is projected, got float32 (2, 2, 8)",
    ),
    "projected-width": (
        stack(c=None, projected=torch.zeros(2, 3, 5, 16)),
        "projected must be a float32 tensor of shape (2, 4, 5, 16) on cpu, got float32 (2, 3, 5, 16)",
    ),
    "projected-order": (
        stack(c=None, projected=torch.zeros(2, 4, 16, 5).transpose(2, 3)),
        "projected must be columns, one behind another, of what project made, got non-contiguous float32 (2, 4, 5, 16)",
    ),
    "projected-interpolated": (
        stack(c=None, projected=torch.zeros(2, 4, 5, 16), spec=INTERPOLATED),
        "projected must be None without c, and where it is interpolated, got float32 (2, 4, 5, 16)",
    ),
    "project-c": (
        lambda: project(torch.zeros(2, 2, 5), WEIGHTS, SPEC),
        f"c {contiguous('float32', '(any, 3, any)')} float32 (2, 2, 5)",
    ),
    "project-rank": (lambda: project(C[0], WEIGHTS, SPEC), "c must be (batch, 3, columns), got (3, 5)"),
    "project-none": (
        lambda: project(C, WEIGHTS, GatedStackSpec(**(arguments(SPEC) | dict(cond_channels=0)))),
        "cond_channels must be at least 1 to project, got 0",
    ),
    "interpolation": (
        stack(spec=INTERPOLATED, c=torch.zeros(2, 3, 7)),
        f"interpolation {contiguous('float32', '(2, 10, 3)')} None",
    ),
    "interpolation-none": (
        stack(interpolation=torch.zeros(2, 10, 1)),
        "interpolation must be None where cond_taps is 1, got a tensor",
    ),
    "interpolation-reverse": (
        stack(spec=INTERPOLATED, c=torch.zeros(2, 3, 7), interpolation=torch.zeros(2, 10, 3), reverse=True),
        "interpolation must be None when running backwards, got a tensor",
    ),
    "state-reverse": (
        stack(state=initial_state(SPEC, 2), reverse=True),
        "state must be None when running backwards, got a tensor",
    ),
    "groups": (stack(c=torch.zeros(2, 1, 4, 3)), f"c {contiguous('float32', '(2, 1, 5, 3)')} float32 (2, 1, 4, 3)"),
    "groups-uneven": (stack(c=torch.zeros(2, 2, 5, 2)), f"c {contiguous('float32', '(2, 3, 5)')} float32 (2, 2, 5, 2)"),
    "groups-empty": (stack(c=torch.zeros(2, 3, 5, 0)), f"c {contiguous('float32', '(2, 3, 5)')} float32 (2, 3, 5, 0)"),
    "project-groups": (
        lambda: project(torch.zeros(2, 2, 5, 3), WEIGHTS, SPEC),
        f"c {contiguous('float32', '(any, 1, any, 3)')} float32 (2, 2, 5, 3)",
    ),
    "sampler-groups": (
        sample(c=torch.zeros(2, 1, 5, 3)),
        f"c {contiguous('float32', '(2, 3, 5)')} float32 (2, 1, 5, 3)",
    ),
    "threads": (stack(threads=0), "threads must be at least 1, got 0"),
    "noise-rank": (sample(noise=X[0]), "noise must be (batch, noise channels, samples), got (1, 10)"),
    "noise-channels": (sample(noise=torch.zeros(2, 3, 10)), f"noise {contiguous('float32', '(any, 1, any)')}"),
    "sampler-state": (sample(state=torch.zeros(2, 2)), "state must be a contiguous float32 tensor of shape"),
    "sampler-flow": (sample(spec=FLOW), "epilogue must be 'none' in a sampler, got a flow's"),
    "sampler-separable": (
        sample(spec=GatedStackSpec(**(arguments(SPEC) | dict(separable=True)))),
        "separable must be False in a sampler, got True",
    ),
    "sampler-interpolated": (sample(spec=INTERPOLATED), "cond_taps must be 1 in a sampler, got 3"),
    "sampler-centred": (sample(spec=CENTRED), "causal must be True: a sampler cannot look ahead, got False"),
    "mixture": (
        sample(head=HeadSpec(distribution="mixture_of_logistics")),
        "head_channels must be a multiple of 3 at its end (a mixture), got 2",
    ),
    "table": (sample(head=HeadSpec(distribution="softmax")), f"table {contiguous('float32', '(2,)')} None"),
    "forced": (sample(forced=torch.zeros(2, 11)), "forced must be no longer than noise, got 11"),
    "sampler-temperature": (sample(temperature=-1.0), "temperature must be at least 0"),
    "mel-rank": (up(mel=torch.zeros(3, 4)), "mel must be (batch, 3, frames), got (3, 4)"),
    "mel-bands": (up(mel=torch.zeros(1, 2, 4)), f"mel {contiguous('float32', '(any, 3, any)')} float32 (1, 2, 4)"),
    "phases": (up(weights=torch.zeros(6)), f"weights {contiguous('float32', '(7,)')} float32 (6,) on cpu"),
    "no-such-window": (up(skip=2**63 - 1, frames=1), "skip must be such that skip + frames stays within mel's frames"),
    "frames": (up(frames=5), "frames must be between 0 and 4, got 5"),
    "frames-negative": (up(frames=-1), "frames must be between 0 and 4, got -1"),
    "scales": (
        lambda: UpsampleSpec(n_mels=3, scales=(2**13, 2**12)),
        "scales must have a product of at most 2^24, got 33554432",
    ),
    "window": (up(skip=2, frames=3), "skip must be such that skip + frames stays within mel's frames, got 2"),
}


@pytest.mark.parametrize("name", OP_ERRORS)
def test_op_error(name):
    assert_refused(*OP_ERRORS[name])


@pytest.mark.parametrize("call", [stack(x=None), stack(x=[1.0]), stack(c="c"), sample(state=3), up(mel=None)])
def test_op_without_a_tensor(call):
    with pytest.raises(TypeError, match=r"^(x|c|state|mel) must be a tensor, got (NoneType|list|str|int)$"):
        call()


@pytest.mark.parametrize(
    ("change", "got"),
    [(torch.Tensor.requires_grad_, "Can't export tensors that require gradient"), (lambda x: x.to("meta"), "meta")],
)
def test_bindings_refuse_what_dlpack_cannot_share_in_one_line(change, got):
    with pytest.raises(ValueError, match="^mel must be a plain tensor that needs no gradient, got .*" + got) as error:
        _cpu.upsample(arguments(UP), mel=change(torch.zeros(1, 3, 4)), weights=PHASES, out=None, skip=0, threads=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", ["x", 3, [1.0], object(), torch.zeros(1)])
@pytest.mark.parametrize("name", ["x", "weights", *OPTIONAL, "out"])
def test_bindings_survive_anything(name, bad):
    tensors = dict.fromkeys(OPTIONAL) | {"x": X, "weights": WEIGHTS, "c": C, "out": torch.zeros(2, 2, 10)}
    with pytest.raises((TypeError, ValueError)):
        _cpu.gated_stack(arguments(SPEC), **(tensors | {name: bad}), reverse=False, pending=0, last=True, threads=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel_size", 33),
        ("kernel_size", 0),
        ("dilations", [0]),
        ("dilations", [1] * 513),
        ("dilations", [2**40]),
        ("residual_channels", 2**40),
        ("gate_channels", -1),
        ("head_relu", [True]),
        ("epilogue", "cubic"),
        ("cond_repeat", 0),
    ],
)
def test_bindings_check_the_shape(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        _cpu.packed_size(arguments(SPEC) | {field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kernel_size", "x", "a 64-bit integer, got str"),
        ("kernel_size", 1.5, "a 64-bit integer, got float"),
        ("gate_channels", 2**63, "a 64-bit integer, got int"),
        ("causal", "x", "a bool, got str"),
        ("residual_scale", None, "a float, got NoneType"),
        ("epilogue", 3, "a string, got int"),
        ("dilations", 3, "a list of integers, got int"),
        ("head_relu", 3, "a list of bools, got int"),
    ],
)
def test_bindings_check_the_types_of_the_shape(field, value, message):
    with pytest.raises(TypeError, match=f"^{field} must be {message}$"):
        _cpu.packed_size(arguments(SPEC) | {field: value})


def test_bindings_name_a_missing_field():
    with pytest.raises(KeyError, match="dilations"):
        _cpu.packed_size({k: v for k, v in arguments(SPEC).items() if k != "dilations"})


def test_a_stack_too_large_for_memory_is_an_error_in_every_thread():
    spec = GatedStackSpec(**(arguments(SPEC) | dict(dilations=(2**24,) * 140, residual_channels=256, cond_channels=0)))
    spec = dataclasses.replace(spec, gate_channels=1, skip_channels=1, head_channels=(1, 2), kernel_size=32)
    weights = torch.zeros(_cpu.packed_size(arguments(spec)))
    for threads in (1, 2):
        with pytest.raises(MemoryError):
            gated_stack(torch.zeros(3, 1, 4), weights, spec, threads=threads)
    assert torch.isfinite(gated_stack(X, WEIGHTS, SPEC, c=C)).all()  # the next call has a workspace again


def test_more_empty_rows_than_can_be_counted_to_take_no_time():
    rows = 2**50
    assert up(mel=torch.empty(rows, 3, 0))().shape == (rows, 3, 0)
    assert stack(x=torch.empty(rows, 1, 0), c=torch.empty(rows, 3, 0))().shape[::2] == (rows, 0)
