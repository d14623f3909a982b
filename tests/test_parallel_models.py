"""What every parallel model does: speech from noise or a seed, ragged batches, streams, folders; and flows, that they
invert."""

import dataclasses
import functools
import importlib
import inspect
import math

import emulated_cuda
import pytest
import torch
from refusals import assert_refused
from torch.nn import functional as F

import fastwave
from fastwave import models, runners
from fastwave.audio import MelSpec
from fastwave.conditioners import TorchConditioner
from fastwave.models import (
    ClariNetStudentConfig,
    DiffWaveConfig,
    FloWaveNetConfig,
    ParallelWaveGANConfig,
    SqueezeWaveConfig,
    WaveGlowConfig,
    WGWaveNetConfig,
)
from fastwave.models.base import MODELS
from fastwave.ops.custom import has_cuda

MEL = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=6, fmax=4000.0)
FRAMES = 100  # more than the kernels run at once
STUDENT = dict(mel=MEL, flows=((1, 2), (1, 2)), front_width=4, residual_channels=6, gate_channels=6, skip_channels=6)
FLOWAVENET = dict(mel=MEL, upsample_scales=(4, 4), blocks=3, flows=2, dilations=(1, 2), prior_dilations=(1,))
WAVEGAN = dict(mel=MEL, residual_channels=6, gate_channels=5, skip_channels=7, dilations=(1, 2, 4, 1, 2, 4))
DIFFWAVE = dict(mel=MEL, dilations=(1, 2, 1), residual_channels=6, step_channels=8)
DIFFWAVE |= dict(noise_schedule=(0.1, 0.2, 0.4, 0.5), fast_schedule=(0.2, 0.6))
GLOW = dict(mel=MEL, flows=3, early_size=2, layers=2, channels=4)
CONFIGS = {
    "student": ClariNetStudentConfig(upsample_scales=(4,), cond_repeat=4, **STUDENT),
    "student-reversed": ClariNetStudentConfig(
        upsample_scales=(4, 4), upsampler="stretched", time_reversal=True, **STUDENT
    ),
    "student-context": ClariNetStudentConfig(upsample_scales=(16,), upsample_context=2, first_sample="zero", **STUDENT),
    "flowavenet": FloWaveNetConfig(blocks_per_split=1, channels=5, **FLOWAVENET),
    "flowavenet-whole": FloWaveNetConfig(blocks_per_split=3, channels=5, **FLOWAVENET),
    "parallel-wavegan": ParallelWaveGANConfig(upsample_scales=(4, 4), upsample_context=1, **WAVEGAN),
    "parallel-wavegan-causal": ParallelWaveGANConfig(
        upsample_scales=(4, 4), upsample_context=2, causal=True, **WAVEGAN
    ),
    "parallel-wavegan-leaky": ParallelWaveGANConfig(upsample_scales=(4, 4), upsample_slope=0.4, **WAVEGAN),
    "parallel-wavegan-causal-leaky": ParallelWaveGANConfig(
        upsample_scales=(4, 4), upsample_context=2, upsample_slope=0.4, causal=True, **WAVEGAN
    ),
    "diffwave": DiffWaveConfig(upsample_scales=(4, 4), **DIFFWAVE),
    "diffwave-fast": DiffWaveConfig(upsample_scales=(4,), cond_repeat=4, fast=True, **DIFFWAVE),
    "waveglow": WaveGlowConfig(group=8, early_every=2, upsample_kernel=40, **GLOW),
    "squeezewave": SqueezeWaveConfig(group=8, **GLOW),
    "squeezewave-whole-frames": SqueezeWaveConfig(group=16, **GLOW),
    "wg-wavenet": WGWaveNetConfig(
        mel=dataclasses.replace(MEL, hop_length=20),
        flows=3,
        group=4,
        layers=2,
        channels=5,
        post_layers=3,
        post_channels=4,
        upsample_scales=(4, 5),
    ),
}
# of each flow, what forward returns -> z, and log |det dz/dwave| of the batch
FLOWS = {
    "flowavenet": lambda z, log_p, logdet: (z, (log_p + logdet) * z.numel() + normal_nll(z)),
    "flowavenet-whole": lambda z, log_p, logdet: (z, logdet * z.numel()),
    "waveglow": lambda z, logdet: (z, logdet),
    "squeezewave": lambda z, logdet: (z, logdet),
    "squeezewave-whole-frames": lambda z, logdet: (z, logdet),
}
every = pytest.mark.parametrize("name", CONFIGS)
backends = pytest.mark.parametrize("kernels", [False, True], ids=["reference", "kernels"])


# the models themselves; tests may define others
KINDS = {kind.config_class: kind for kind in MODELS.values() if hasattr(kind, "config_class")}
KINDS = {
    c: kind for c, kind in KINDS.items() if issubclass(kind, models.ParallelModel) and "fastwave." in kind.__module__
}


def normal_nll(z):
    return 0.5 * (z.square() + math.log(2 * math.pi)).sum()


def make(name, dtype=torch.float32):
    """A model whose layers all do something, those too that start at zero."""
    torch.manual_seed(0)
    model = KINDS[type(CONFIGS[name])](CONFIGS[name]).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """FRAMES are more than one block."""
    monkeypatch.setattr(runners, "PARALLEL_FRAMES", runners.BLOCK_FRAMES)


@pytest.mark.parametrize(("config", "fast", "frames"), [("base", True, 34), ("base", False, 34), ("large", False, 128)])
def test_a_block_has_the_frames_whose_projections_fit(monkeypatch, config, fast, frames):
    """DiffWave keeps what it projects for the steps that share it, 3.9 MB a frame, where all of them fit."""
    monkeypatch.setattr(runners, "PARALLEL_FRAMES", 128)
    model = models.DiffWave(getattr(DiffWaveConfig, config)(fast=fast))
    assert runners.Parallel(model, "float32", torch.device("cpu")).block_frames == frames


@pytest.mark.parametrize(
    ("config", "fast", "batch"), [("base", True, 11), ("base", False, 1), ("large", True, 5), ("large", False, 0)]
)
def test_steps_share_what_they_project_while_the_batch_fits(config, fast, batch):
    model = models.DiffWave(getattr(DiffWaveConfig, config)(fast=fast))
    runner = runners.Parallel(model, "float32", torch.device("cpu"))
    assert runner.shared(batch) == dict.fromkeys(range(len(runner.stages)), 0)
    assert runner.shared(batch + 1) == {}


def mels(batch=2, frames=FRAMES, dtype=torch.float32):
    return torch.rand(batch, MEL.n_mels, frames, generator=torch.Generator().manual_seed(1), dtype=dtype)


def generator(model, kernels):
    return fastwave.Vocoder(model, threads=1).generate if kernels else model.generate


def assert_near(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_every_parallel_model_is_here():
    assert {type(config) for config in CONFIGS.values()} == set(KINDS)


@every
@backends
def test_generate(name, kernels):
    model, mel = make(name), mels()
    generate = generator(model, kernels)
    wave = generate(mel, seed=3)
    assert wave.shape == (2, FRAMES * model.config.mel.hop_length)
    assert wave.dtype == torch.float32 and wave.isfinite().all()
    noise = model.noise(mel, None, 3)
    assert torch.equal(generate(mel, seed=3), wave)
    assert torch.equal(generate(mel, noise=noise), wave)
    assert not torch.allclose(generate(mel, seed=4), wave)
    assert not torch.allclose(generate(mel.flip(2), seed=3), wave)
    assert not torch.allclose(wave[0], wave[1])
    for temperature in (0.0, 0.5):
        assert torch.equal(generate(mel, seed=3, temperature=temperature), generate(mel, noise=temperature * noise))


@every
def test_kernels_and_float64(name):
    mel = mels()
    noise = make(name).noise(mel, None, 5)
    exact = make(name, torch.float64).generate(mel.double(), noise=noise.double())
    assert exact.dtype == torch.float64
    assert_near(make(name).generate(mel, noise=noise).double(), exact)
    assert_near(fastwave.Vocoder(make(name)).generate(mel, noise=noise).double(), exact)


@every
def test_stacks_on_an_emulated_gpu(name, monkeypatch):
    """All that the models ask of gated_stack; and that their streams carry over its calls."""
    if emulated_cuda.cuda is None:
        pytest.skip("not built: make cuda_on_cpu")
    monkeypatch.setattr(importlib.import_module("fastwave.ops.gated_stack"), "_cpu", emulated_cuda.Kernels)
    monkeypatch.setattr(runners.Parallel, "shared", lambda self, batch: {})  # on a GPU every call projects its own
    emulated_cuda.emulator.configure(sm=90, seed=1)
    model, mel = make(name), mels(frames=9)
    vocoder = fastwave.Vocoder(model)
    wave = vocoder.generate(mel, seed=3)
    assert_near(wave, model.generate(mel, seed=3))
    if vocoder.streams:
        assert_near(torch.cat(list(vocoder.stream(mel.split(4, 2), seed=3)), 1), wave, 1e-6)
    emulated_cuda.emulator.configure()


@every
def test_generate_on_cuda(name):
    if not (has_cuda() and torch.cuda.is_available()):
        pytest.skip("no CUDA device")
    model, mel, lengths = make(name), mels(), torch.tensor([FRAMES, 37])
    vocoder = fastwave.Vocoder(model, device="cuda")
    wave = vocoder.generate(mel, seed=3, lengths=lengths)
    assert wave.device.type == "cpu"
    assert_near(wave, fastwave.Vocoder(model).generate(mel, seed=3, lengths=lengths), 1e-4)
    if vocoder.streams:
        chunks = torch.cat(list(vocoder.stream(mel.split(7, 2), seed=3)), 1)
        assert_near(chunks, vocoder.generate(mel, seed=3), 1e-5)


@every
def test_conditioning_in_torch(name):
    """As a GPU's is made."""
    model, mel = make(name), mels()
    conditioner = TorchConditioner(model)
    whole = model.condition(mel)
    parts, first = [], 0
    for end in (24, 64, FRAMES):
        behind = max(0, first - conditioner.behind)
        window = mel[..., behind : end + conditioner.ahead]
        parts += conditioner.columns(window, behind, end, first, 1)
        first = end
    assert_near(torch.cat(parts, 2), whole)


@every
@backends
def test_a_row_does_not_depend_on_its_batch(name, kernels):
    generate, mel = generator(make(name), kernels), mels(3)
    assert_near(generate(mel[:1], seed=3)[0], generate(mel, seed=3)[0])


@every
@backends
def test_ragged_rows_are_rows_alone(name, kernels):
    dtype, tolerance = (torch.float32, 1e-5) if kernels else (torch.float64, 1e-11)
    model, mel, lengths = make(name, dtype), mels(3, dtype=dtype), torch.tensor([FRAMES, 13, 1])
    generate, noise = generator(model, kernels), model.noise(mel, None, 3)
    wave = generate(mel, noise=noise, lengths=lengths)
    for row, frames in enumerate(lengths.tolist()):
        alone = generate(mel[row : row + 1, :, :frames], noise=noise[row : row + 1, ..., : frames * model.noise_rate])
        end = frames * model.config.mel.hop_length
        assert_near(wave[row, :end], alone[0], tolerance)
        assert (wave[row, end:] == 0).all()


@every
def test_streams_are_generate(name):
    vocoder, mel = fastwave.Vocoder(make(name), threads=1), mels()
    if not vocoder.streams:
        assert_refused(lambda: vocoder.stream([mel]), "stream needs a model that runs forwards in time")
        return
    whole = vocoder.generate(mel, seed=3)
    for cut in ([1] * FRAMES, [3, 20, 1, 32, 44]):
        assert torch.equal(torch.cat(list(vocoder.stream(mel.split(cut, 2), seed=3)), 1), whole)


@every
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 40), ("int8", 35)])
def test_other_types_come_close(name, dtype, least):
    """In dB above what differs; their streams are their own generate()."""
    mel, wanted = mels(), fastwave.Vocoder(make(name), threads=1).generate(mels(), seed=3)
    vocoder = fastwave.Vocoder(make(name), dtype=dtype, threads=1)
    wave = vocoder.generate(mel, seed=3)
    assert 0 < torch.linalg.norm(wave - wanted) < 10 ** (-least / 20) * torch.linalg.norm(wanted)
    if vocoder.streams:
        assert torch.equal(torch.cat(list(vocoder.stream(mel.split([3, 20, 1, 32, 44], 2), seed=3)), 1), wave)


@every
def test_a_stream_is_no_later_than_it_says(name):
    """And as late at some time, fed frame by frame."""
    vocoder, mel, fed, made, late = fastwave.Vocoder(make(name), threads=1), mels()[:1], 0, 0, []
    if not vocoder.streams:
        return

    def frames():
        nonlocal fed
        for frame in mel.split(1, 2):
            late.append(fed * vocoder.hop_length - made)
            fed += 1
            yield frame
        late.append(fed * vocoder.hop_length - made)

    for chunk in vocoder.stream(frames()):
        made += chunk.shape[1]
    assert max(late) == vocoder.look_ahead
    assert (max(late) == 0) == ("causal" in name)


@every
def test_folders(name, tmp_path):
    model, mel = make(name), mels()
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.generate(mel, seed=3), model.generate(mel, seed=3))


@every
@backends
def test_refusals(name, kernels):
    model, mel = make(name), mels()
    generate, shape = generator(model, kernels), tuple(model.noise(mels(), None, 0).shape)
    own = (shape[0], shape[2]) if shape[1] == 1 else shape
    sizes = ((3, *shape[1:]), (2, shape[1] + 1, shape[2]), (2, shape[1], shape[2] - 1), (2, shape[2] + 1), (2, 1, 1, 1))
    for wrong in sizes:
        assert_refused(lambda wrong=wrong: generate(mel, noise=torch.zeros(wrong)), f"noise must be {own}, got {wrong}")
    assert_refused(lambda: generate(mel, noise=[0.0]), "noise must be a tensor, got list")
    assert_refused(lambda: generate(mel, noise=torch.full(shape, math.nan)), "noise must be finite, got NaN")
    assert_refused(lambda: generate(mel, temperature=-1.0), "temperature must be at least 0, got -1.0")
    assert_refused(lambda: generate(mel[:, :5]), f"mel must be (batch, 6, frames), got (2, 5, {FRAMES})")
    assert_refused(lambda: generate(mel[0]), f"mel must be (batch, 6, frames), got (6, {FRAMES})")
    assert_refused(lambda: generate(mel * math.nan), "mel must be finite, got nan at (0, 0, 0)")
    assert_refused(lambda: generate(mel, seed=-1), "seed must be in [0, 2**64), got -1")
    for lengths in (torch.tensor([FRAMES + 1, 1]), torch.tensor([FRAMES]), torch.tensor([1.0, 2.0])):
        assert_refused(lambda lengths=lengths: generate(mel, lengths=lengths), "lengths must be 2 integers")


@every
def test_samples_and_mels_that_do_not_fit(name):
    model = make(name)
    n, context = model.config.mel.n_mels, 2 * model.context
    wave = torch.zeros(2, 6 * model.config.mel.hop_length)
    tensors = {"wave": wave, "x": wave, "z": model.noise(mels(frames=6), None, 0).squeeze(1)}
    mel, more = mels(frames=6 + context), f" + {context} of context" if context else ""
    for method in ("forward", "loss", "flow_loss", "sample_loss", "inverse"):
        if not hasattr(model, method):
            continue
        method = getattr(model, method)
        (first, *others), named = inspect.signature(method).parameters, {}
        if "step" in others:
            named["step"] = torch.tensor([0, 1])
        fits = tensors[first]
        for wrong in (fits[..., :-1], F.pad(fits, (0, 1)), fits[:1], fits[0], fits[None]):
            message = f"{first} must be {tuple(fits.shape)}, as mel has 6 frames{more}, got {tuple(wrong.shape)}"
            assert_refused(functools.partial(method, wrong, mel=mel, **named), message)
        for wrong in (mel[:, 1:], mel[0], mel[None], mel[..., :context]):
            message = f"mel must be (batch, {n}, frames{more}), got {tuple(wrong.shape)}"
            assert_refused(functools.partial(method, fits, mel=wrong, **named), message)
        assert_refused(functools.partial(method, [0.0], mel=mel, **named), f"{first} must be a tensor, got list")
        assert_refused(functools.partial(method, fits, mel=None, **named), "mel must be a tensor, got NoneType")


def recording(batch=2, frames=FRAMES, dtype=torch.float32):
    return torch.randn(batch, frames * 16, generator=torch.Generator().manual_seed(2), dtype=dtype)


def test_every_flow_is_here():
    filtered = {"wg-wavenet"}  # behind its flow is a filter: tests/test_wg_wavenet.py
    assert set(FLOWS) == {name for name in CONFIGS if hasattr(make(name), "inverse")} - filtered


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_flows_invert(name, dtype, bound):
    model, mel, wave = make(name, dtype), mels(dtype=dtype), recording(dtype=dtype)
    z, _ = FLOWS[name](*model(wave, mel))
    assert (z.reshape(wave.shape) - wave).abs().max() > 0.1
    torch.testing.assert_close(model.inverse(z, mel), wave, rtol=0, atol=bound)
    torch.testing.assert_close(*(model(wave, mel)[0] for _ in range(2)), rtol=0, atol=0)
    if "squeezewave" in name:  # generates with its normalisation folded, which is another function at the edges
        return
    torch.testing.assert_close(model.generate(mel, noise=z), wave, rtol=0, atol=bound)
    if dtype == torch.float32:
        torch.testing.assert_close(fastwave.Vocoder(model).generate(mel, noise=z), wave, rtol=0, atol=bound)


@pytest.mark.parametrize("name", FLOWS)
def test_log_determinants(name):
    model = make(name, torch.float64)
    mel, wave = mels(1, 2, torch.float64), recording(1, 2, torch.float64)
    _, logdet = FLOWS[name](*model(wave, mel))
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, mel)[0].flatten(), wave)[:, 0]
    torch.testing.assert_close(logdet.sum(), torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)
