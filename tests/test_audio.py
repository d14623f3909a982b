import dataclasses
import json
import math
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from fastwave import audio
from fastwave.audio import PRESETS, MelSpec

R9Y9, KSW0306 = PRESETS["r9y9/wavenet_vocoder"], PRESETS["ksw0306/ClariNet"]
LMNT, KAN_BAYASHI = PRESETS["lmnt-com/diffwave"], PRESETS["kan-bayashi/ParallelWaveGAN"]
WAVEGLOW, WG_WAVENET = PRESETS["NVIDIA/waveglow"], PRESETS["BogiHsu/WG-WaveNet"]
SMALL = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=5, fmax=4000.0)


@pytest.fixture(scope="module")
def golden():
    """Mels that the projects' own code made of two clips: 16-bit waves, mels (bands, frames)."""
    tensors = {}
    for path in (Path(__file__).parent / "data").glob("frontends*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {name: tensor / 32_768 if tensor.dtype == torch.int16 else tensor for name, tensor in tensors.items()}


def noise(*shape, seed=0, dtype=torch.float32):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def librosas_filterbank(spec):
    return librosa.filters.mel(
        sr=spec.sample_rate,
        n_fft=spec.n_fft,
        n_mels=spec.n_mels,
        fmin=spec.fmin,
        fmax=spec.fmax,
        htk=spec.mel_scale == "htk",
        norm="slaney" if spec.mel_norm == "area" else None,
        dtype=np.float64,
    )


def oracle(wave, spec):
    """The mel of one float64 wave by numpy and librosa's filter bank, and how far float32 rounding may move it.

    Rounding the wave, the window and the transform (10 butterfly stages for n_fft = 1024) moves a bin by a few
    units of 2^-24 of the energy of its whole windowed frame, however quiet the bin is: 8 of them are allowed here. The
    bound follows that error through power, bands and logarithm; only there it is large, where a band is nearly silent
    beside its frame. The last term is for the arithmetic on the logarithm itself.
    """
    unit = 2.0**-24
    if spec.peak is not None:
        wave = wave * (spec.peak / np.abs(wave).max())
    if spec.preemphasis:
        wave = np.concatenate([wave[:1], wave[1:] - spec.preemphasis * wave[:-1]])
    margin = (spec.n_fft - spec.win_length) // 2
    window = np.zeros(spec.n_fft)
    window[margin : margin + spec.win_length] = 0.5 - 0.5 * np.cos(
        2 * np.pi * np.arange(spec.win_length) / spec.win_length
    )
    if spec.normalized:
        window /= np.linalg.norm(window)
    padded = np.pad(wave, spec.n_fft // 2, mode=spec.padding)
    starts = range(0, len(wave) // spec.hop_length * spec.hop_length + 1, spec.hop_length)
    frames = np.stack([padded[start : start + spec.n_fft] * window for start in starts], axis=1)
    magnitude = np.abs(np.fft.rfft(frames, axis=0))
    filterbank = librosas_filterbank(spec)
    bands = np.maximum(filterbank @ magnitude**spec.power, spec.floor)
    bin_error = 8 * unit * np.linalg.norm(frames, axis=0)
    band_error = filterbank @ (
        spec.power * magnitude ** (spec.power - 1) * bin_error + 4 * unit * magnitude**spec.power
    )
    factor = {"ln": 1.0, "log10": 1 / math.log(10), "db": 20 / math.log(10)}[spec.log]
    mel, bound = factor * np.log(bands), factor * (band_error / bands + 4 * unit * np.abs(np.log(bands)))
    if spec.log_range is not None:
        low, high = spec.log_range
        mel, bound = np.clip((mel - low) / (high - low), 0, 1), bound / (high - low) + 4 * unit
    if spec.mean is not None:
        mean, std = np.array(spec.mean)[:, None], np.array(spec.std)[:, None]
        mel, bound = (mel - mean) / std, (bound + 4 * unit * (np.abs(mel) + np.abs(mean))) / std
    return mel, bound


def assert_within(result, expected, bound):
    excess = np.abs(np.asarray(result, dtype=np.float64) - expected) - bound
    assert excess.max() <= 0, f"{excess.max():.1e} over the bound at {np.unravel_index(excess.argmax(), excess.shape)}"


# pre-emphasis --------------------------------------------------------------------------------------------------------


def test_preemphasis_matches_the_projects(golden):
    wave = golden["wave"][None]
    torch.testing.assert_close(audio.preemphasized(wave, 0.85)[0], golden["r9y9.preemphasis_0.85"], rtol=0, atol=2**-24)


# log-mel -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wave", "mel", "spec", "rounding"),
    [
        ("wave", "r9y9.mel", R9Y9, 1),
        ("wave", "r9y9.mel_preemphasis_0.85", dataclasses.replace(R9Y9, preemphasis=0.85), 1),
        ("wave", "ksw0306.mel_reflect", KSW0306, 1),
        ("wave", "ksw0306.mel_constant", dataclasses.replace(KSW0306, padding="constant"), 1),
        ("long.wave", "long.ksw0306.mel_reflect", KSW0306, 1),
        ("long.wave", "long.lmnt.mel", LMNT, 3),  # its filter bank too is made in float32
        ("long.wave", "long.kan-bayashi.mel", KAN_BAYASHI, 1),
        ("long.wave", "long.kan-bayashi.mel_ln", dataclasses.replace(KAN_BAYASHI, log="ln"), 1),
        ("wave", "waveglow.mel", WAVEGLOW, 3),  # its transform is a product with a matrix
        ("long.wave", "long.waveglow.mel", WAVEGLOW, 3),
        ("wave", "wg_wavenet.mel_reflect", WG_WAVENET, 1),
        ("wave", "wg_wavenet.mel_constant", dataclasses.replace(WG_WAVENET, padding="constant"), 1),
    ],
)
def test_presets_match_their_projects(golden, wave, mel, spec, rounding):
    wave, expected = golden[wave][None], golden[mel].numpy().astype(np.float64)
    reference, bound = oracle(wave[0].double().numpy(), spec)
    bound = rounding * bound
    assert_within(reference, expected, bound)  # the golden is itself rounded to float32 on the way
    assert_within(audio.log_mel(wave.double(), spec)[0], expected, bound)
    assert_within(audio.log_mel(wave, spec)[0], expected, 2 * bound)  # both sides are rounded
    assert np.median(bound) < 1e-4  # and the bound does say something


@pytest.mark.parametrize(
    ("samples", "padding", "mel"), [(16_384, 384, "squeezewave.segment"), (8192, 4480, "squeezewave.segment_8192")]
)
def test_squeezewave_pads_a_training_segment_otherwise(golden, samples, padding, mel):
    """To 64 frames; the usual 16,384 samples by (n_fft - hop_length) / 2, which centres them half a hop later."""
    spec, wave = PRESETS["tianrengao/SqueezeWave"], golden["wave"][:samples].double().numpy()
    padded = np.pad(wave, padding, mode="reflect")
    expected, frames = golden[mel].numpy().astype(np.float64), slice(2, 66)
    reference, bound = (part[:, frames] for part in oracle(padded, spec))
    assert_within(reference, expected, 3 * bound)  # its transform is a product with a matrix
    assert_within(audio.log_mel(torch.from_numpy(padded)[None], spec)[0, :, frames], expected, 3 * bound)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ksw0306_trains_on_recordings_amid_zeros(golden, dtype):
    """Up to the next whole frame, half of them in front: speech lags behind its mel by up to half a hop."""
    wave, expected = golden["wave"][None].to(dtype), golden["flowavenet.audio"]
    zeros = KSW0306.hop_length - wave.shape[1] % KSW0306.hop_length
    padded = torch.nn.functional.pad(audio.peak_normalized(wave, KSW0306)[0], (zeros // 2, zeros - zeros // 2))
    torch.testing.assert_close(padded, expected.to(dtype), rtol=0, atol=4 * 2.0**-24)  # a quotient and product each


def test_paddings_differ(golden):
    assert (golden["ksw0306.mel_reflect"] - golden["ksw0306.mel_constant"]).abs().max() > 0.01


STATISTICS = {"mean": tuple(0.1 * k for k in range(80)), "std": tuple(1 + 0.1 * k for k in range(80))}
SPECS = {
    **PRESETS,
    "ln": MelSpec(log="ln", log_range=None, fmin=0.0),
    "decibels of power": MelSpec(log="db", power=2.0, log_range=(-100.0, 0.0), n_mels=20),
    "short window": MelSpec(win_length=600, hop_length=200, fmax=11_025.0),
    "statistics": MelSpec(log_range=None, **STATISTICS),
    "everything": MelSpec(
        log="ln", peak=0.5, preemphasis=0.97, padding="constant", log_range=(-9.0, 2.0), **STATISTICS
    ),
    "low": MelSpec(sample_rate=8000, n_fft=256, hop_length=80, win_length=200, n_mels=13, fmin=300.0, fmax=900.0),
    "high": MelSpec(sample_rate=48_000, n_fft=2048, hop_length=512, win_length=2048, fmin=2000.0, fmax=24_000.0),
}


@pytest.mark.parametrize("samples", [1025, 1280, 3000])
@pytest.mark.parametrize("name", SPECS)
def test_log_mel(name, samples):
    spec, wave = SPECS[name], noise(2, samples, dtype=torch.float64)
    wave[1, samples // 2 :] = 0.0  # down to the floor
    exact, rounded = audio.log_mel(wave, spec), audio.log_mel(wave.float(), spec)
    assert exact.dtype == torch.float64 and rounded.dtype == torch.float32
    for row in range(2):
        expected, bound = oracle(wave[row].numpy(), spec)
        assert_within(exact[row], expected, 1e-6 * bound + 1e-13)
        assert_within(rounded[row], expected, bound)
    assert exact.shape == (2, spec.n_mels, 1 + samples // spec.hop_length)


@pytest.mark.parametrize("name", SPECS)
def test_filter_bank_is_librosas(name):
    spec = SPECS[name]
    np.testing.assert_allclose(audio.mel_filterbank(spec), librosas_filterbank(spec), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", PRESETS)
def test_silence_is_the_floor(name):
    spec = PRESETS[name]
    mel = audio.log_mel(torch.zeros(1, 2000), spec)
    floor = math.log(spec.floor) * audio._LOGS[spec.log] if spec.log_range is None else 0.0
    floor = 0.0 if spec.log_range else math.log(spec.floor, 10 if spec.log == "log10" else math.e)
    assert torch.allclose(mel, torch.tensor(floor), atol=1e-6)


def test_default_range_holds_a_full_scale_sine():
    time = torch.arange(4096, dtype=torch.float64) / MelSpec().sample_rate
    frequencies = torch.tensor([100.0, 200.0, 400.0, 1000.0, 4000.0])[:, None]
    largest = audio.log_mel((2 * math.pi * frequencies * time).sin(), MelSpec()).amax(dim=(1, 2))
    assert largest.min() > 0.6 and largest.max() < 1.0


def test_constant_padding_takes_a_single_sample():
    assert audio.log_mel(torch.ones(3, 1), MelSpec(padding="constant")).shape == (3, 80, 1)


@pytest.mark.parametrize(
    "changes", [{}, {"power": 2.0, "log": "db", "log_range": None, "peak": 0.9, "preemphasis": 0.9}]
)
def test_gradients(changes):
    spec = dataclasses.replace(SMALL, **changes)
    wave = noise(2, 50, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: audio.log_mel(x, spec), wave, fast_mode=True)


def test_silence_has_a_finite_gradient():
    wave = torch.zeros(1, 2000, requires_grad=True)
    audio.log_mel(wave, KSW0306).sum().backward()
    assert wave.grad.isfinite().all()


def test_constants_survive_inference_mode():
    spec = dataclasses.replace(SMALL, mean=(0.0,) * 5, std=(1.0,) * 5)
    with torch.inference_mode():
        audio.log_mel(noise(1, 100), spec)
    wave = noise(1, 100).requires_grad_()
    audio.log_mel(wave, spec).sum().backward()
    assert wave.grad.abs().max() > 0


def test_mixed_precision_leaves_the_mel_alone():
    wave = noise(1, 3000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = audio.log_mel(wave, MelSpec())
    assert torch.equal(mixed, audio.log_mel(wave, MelSpec()))


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros((1, 2000)), "wave must be a torch.Tensor, got ndarray"),
        (torch.zeros(2, 3, 100), "wave must be (batch, samples), got (2, 3, 100)"),
        (torch.zeros(100), "wave must be (batch, samples), got (100,)"),
        (torch.zeros(1, 2000, dtype=torch.int16), "wave must be float32 or float64, got torch.int16"),
        (torch.zeros(1, 2000).half(), "wave must be float32 or float64, got torch.float16"),
        (torch.zeros(1, 0), "wave must not be empty, got (1, 0)"),
        (torch.zeros(0, 2000), "wave must not be empty, got (0, 2000)"),
        (torch.zeros(1, 512), "wave must be longer than 512 samples to reflect n_fft / 2 of them, got 512"),
        (torch.full((1, 2000), math.inf), "wave must be finite, got inf at (0, 0)"),
        (torch.tensor([[0.0] * 600, [0.0] * 599 + [math.nan]]), "wave must be finite, got nan at (1, 599)"),
    ],
)
def test_log_mel_errors(wave, message):
    with pytest.raises(ValueError) as error:
        audio.log_mel(wave, MelSpec())
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("mel", "message"),
    [
        (np.zeros((1, 80, 4)), "mel must be a torch.Tensor, got ndarray"),
        (torch.zeros(2, 64, 100), "mel must be (batch, 80, frames), got (2, 64, 100)"),
        (torch.zeros(80, 100), "mel must be (batch, 80, frames), got (80, 100)"),
        (torch.zeros(1, 80, 0), "mel must not be empty, got (1, 80, 0)"),
        (torch.zeros(0, 80, 4), "mel must not be empty, got (0, 80, 4)"),
        (torch.zeros(1, 80, 4).bfloat16(), "mel must be float32 or float64, got torch.bfloat16"),
        (torch.full((1, 80, 4), -math.inf), "mel must be finite, got -inf at (0, 0, 0)"),
    ],
)
def test_check_mel_errors(mel, message):
    with pytest.raises(ValueError) as error:
        audio.check_mel(mel, MelSpec())
    assert str(error.value) == message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_check_mel_accepts(dtype):
    audio.check_mel(torch.zeros(2, 80, 1, dtype=dtype), MelSpec())


# MelSpec -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_spec_survives_json(name):
    values = SPECS[name].to_dict()
    assert json.loads(json.dumps(values)) == values
    assert MelSpec.from_dict(json.loads(json.dumps(values))) == SPECS[name]
    assert hash(MelSpec.from_dict(values)) == hash(SPECS[name])


def test_presets_by_name():
    assert MelSpec.preset("fastwave") == MelSpec()
    assert MelSpec.preset("ksw0306/ClariNet") is KSW0306
    assert MelSpec.preset("ksw0306/FloWaveNet") is KSW0306  # their goldens are the same numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_mels": 0}, "n_mels must be at least 1, got 0"),
        ({"n_mels": 80.5}, "n_mels must be an integer, got 80.5"),
        ({"sample_rate": "22050"}, "sample_rate must be an integer, got '22050'"),
        ({"hop_length": -1}, "hop_length must be at least 1, got -1"),
        ({"n_fft": 1025}, "n_fft must be even, got 1025"),
        ({"win_length": 2048}, "win_length must be at most n_fft = 1024, got 2048"),
        ({"fmin": -1.0}, "fmin must be at least 0 and below fmax = 8000.0, got -1.0"),
        ({"fmin": 8000}, "fmin must be at least 0 and below fmax = 8000.0, got 8000"),
        ({"fmin": math.nan}, "fmin must be finite, got nan"),
        ({"fmax": None}, "fmax must be finite, got None"),
        ({"sample_rate": 8000}, "fmax must be at most sample_rate / 2 = 4000.0, got 8000.0"),
        ({"mel_scale": "bark"}, "mel_scale must be slaney or htk, got 'bark'"),
        ({"mel_norm": None}, "mel_norm must be area or peak, got None"),
        ({"normalized": "window"}, "normalized must be False or True, got 'window'"),
        ({"power": 3.0}, "power must be 1 or 2, got 3.0"),
        ({"padding": "replicate"}, "padding must be reflect or constant, got 'replicate'"),
        ({"log": "log2"}, "log must be ln or log10 or db, got 'log2'"),
        ({"floor": 0.0}, "floor must be above 0, got 0.0"),
        ({"peak": -0.5}, "peak must be above 0, got -0.5"),
        ({"peak": "loud"}, "peak must be finite, got 'loud'"),
        ({"log_range": (1.0, -5.0)}, "log_range must be (low, high) with low < high, got (1.0, -5.0)"),
        ({"log_range": [1.0]}, "log_range must be (low, high) with low < high, got (1.0,)"),
        ({"log_range": 5.0}, "log_range must be a tuple of numbers, got float"),
        ({"mean": (0.0,) * 80}, "mean and std must be given together, got only mean"),
        ({"std": (1.0,) * 80}, "mean and std must be given together, got only std"),
        ({"mean": (0.0,) * 80, "std": (1.0,) * 79}, "std must be 80 numbers, one per band, got 79"),
        ({"mean": (0.0,) * 80, "std": (1.0,) * 79 + (0.0,)}, "std must be above 0 in every band, got 0.0"),
        ({"mean": (0.0,) * 79 + (math.inf,), "std": (1.0,) * 80}, "mean must be finite, got inf"),
    ],
)
def test_spec_errors(changes, message):
    with pytest.raises(ValueError) as error:
        MelSpec(**changes)
    assert str(error.value) == message


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"^MelSpec fields must be among sample_rate, .*, std, got 'hop_size'$"):
        MelSpec.from_dict(MelSpec().to_dict() | {"hop_size": 256})
    with pytest.raises(ValueError, match=r"^preset must be one of fastwave, .*ClariNet, .*, got 'hifigan'$"):
        MelSpec.preset("hifigan")


# classes -------------------------------------------------------------------------------------------------------------

SIZES = [2, 3, 16, 255, 256, 512, 2048, 65_536]
KINDS = {
    "mulaw": (audio.mulaw_quantize, audio.mulaw_dequantize),
    "linear": (audio.linear_quantize, audio.linear_dequantize),
}


@pytest.mark.parametrize("n_classes", SIZES)
def test_companding(n_classes):
    mu = n_classes - 1
    wave = torch.cat([torch.tensor([-1.0, 0.0, 1.0]), noise(500)]).double().clamp(-1, 1)
    companded = audio.mulaw_encode(wave, n_classes)
    expected = np.sign(wave.numpy()) * np.log(1 + mu * np.abs(wave.numpy())) / np.log(1 + mu)
    np.testing.assert_allclose(companded, expected, rtol=1e-11, atol=1e-15)
    assert companded[[0, 1, 2]].tolist() == pytest.approx([-1, 0, 1])
    torch.testing.assert_close(audio.mulaw_decode(companded, n_classes), wave, rtol=1e-12, atol=1e-14)
    for function, argument in ((audio.mulaw_encode, wave), (audio.mulaw_decode, companded)):
        assert torch.allclose(function(argument.float(), n_classes).double(), function(argument, n_classes), atol=1e-6)


@pytest.mark.parametrize("n_classes", SIZES)
def test_mulaw_classes_truncate(n_classes):
    mu, wave = n_classes - 1, noise(4, 500).clamp(-1, 1)
    x = wave.double().numpy()
    position = (np.sign(x) * np.log1p(mu * np.abs(x)) / np.log1p(mu) + 1) / 2 * mu
    classes = audio.mulaw_quantize(wave, n_classes)
    assert classes.dtype == torch.int64 and classes.shape == wave.shape
    certain = np.abs(position - np.round(position)) > mu * 2.0**-23  # elsewhere rounding decides
    assert certain.mean() > 0.9
    np.testing.assert_array_equal(classes.numpy()[certain], position.astype(np.int64)[certain])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", SIZES)
def test_a_class_value_has_its_own_class(kind, n_classes):
    quantize, dequantize = KINDS[kind]
    classes = torch.arange(n_classes)
    values = dequantize(classes, n_classes)
    assert values.dtype == torch.float32 and torch.equal(values, audio.decode_table(n_classes, kind))
    assert (values.diff() > 0).all()
    torch.testing.assert_close(values, -values.flip(0))
    assert torch.equal(quantize(values, n_classes), classes)
    assert quantize(torch.tensor([-3.0, -1.0, 1.0, 3.0]), n_classes).tolist() == [0, 0, n_classes - 1, n_classes - 1]


@pytest.mark.parametrize("n_classes", SIZES)
def test_linear_bins_are_half_a_bin_off_at_most(n_classes):
    wave = torch.linspace(-1, 1, 999)
    error = audio.linear_dequantize(audio.linear_quantize(wave, n_classes), n_classes) - wave
    assert error.abs().max() <= 1 / n_classes + 2.0**-23


def test_decode_tables_by_hand():
    assert audio.decode_table(4, "linear").tolist() == [-0.75, -0.25, 0.25, 0.75]
    # mu = 3: (4^|y| - 1) / 3 at y = 1/3 and 1
    assert audio.decode_table(4, "mulaw").tolist() == pytest.approx(
        [-1, -(4 ** (1 / 3) - 1) / 3, (4 ** (1 / 3) - 1) / 3, 1]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_has_classes(dtype):
    wave = noise(100).to(dtype)
    for quantize, _ in KINDS.values():
        assert torch.equal(quantize(wave, 256), quantize(wave.float(), 256))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audio.mulaw_encode(torch.zeros(1), 1), "n_classes must be at least 2, got 1"),
        (lambda: audio.mulaw_decode(torch.zeros(1), 70_000), "n_classes must be at most 65536, got 70000"),
        (lambda: audio.linear_quantize(torch.zeros(1), 2.5), "n_classes must be an integer, got 2.5"),
        (lambda: audio.decode_table(256, "alaw"), "kind must be mulaw or linear, got 'alaw'"),
        (lambda: audio.mulaw_dequantize(torch.tensor([3, 256]), 256), "index must be from 0 to 255, got 256"),
        (lambda: audio.linear_dequantize(torch.tensor([[-1]]), 4), "index must be from 0 to 3, got -1"),
        (
            lambda: audio.mulaw_dequantize(torch.zeros(2), 4),
            "index must be int64 or int32 or int16 or uint8, got torch.float32",
        ),
        (
            lambda: audio.mulaw_quantize(torch.zeros(2).int(), 4),
            "wave must be float32 or float64 or float16 or bfloat16, got torch.int32",
        ),
        (lambda: audio.mulaw_quantize(torch.tensor([0, math.nan]), 4), "wave must be finite, got nan at (1,)"),
        (lambda: audio.linear_quantize(torch.zeros(0), 4), "wave must not be empty, got (0,)"),
    ],
)
def test_class_errors(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


# files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_round_trip(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    wave = torch.cat([torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]), noise(3000)]).clamp(-2, 2)
    audio.write(path, wave, 22_050)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert soundfile.info(path).subtype == "PCM_16"
    result = audio.read(path, 22_050)
    assert result.dtype == torch.float32 and result.shape == wave.shape
    clipped = wave.clamp(-1, 32_767 / 32_768)
    assert (result - clipped).abs().max() <= 0.5 / 32_768  # exact in float32: both are small multiples of 2^-16
    audio.write(path, result, 22_050)
    assert torch.equal(audio.read(str(path), 22_050), result)


def test_every_16_bit_value_survives(tmp_path):
    wave = torch.arange(-32_768, 32_768) / 32_768
    audio.write(tmp_path / "all.flac", wave, 16_000)
    assert torch.equal(audio.read(tmp_path / "all.flac", 16_000), wave)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE", "PCM_U8"])
def test_reads_stereo_of_any_width_as_mono(tmp_path, subtype):
    stereo = (torch.tensor([[0.5, -0.25]]) * torch.ones(100, 1)).numpy()
    soundfile.write(tmp_path / "stereo.wav", stereo, 22_050, subtype=subtype)
    torch.testing.assert_close(audio.read(tmp_path / "stereo.wav", 22_050), torch.full((100,), 0.125))


@pytest.mark.parametrize(("source_rate", "target_rate"), [(48_000, 22_050), (16_000, 22_050), (22_050, 16_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resample_keeps_a_sine(source_rate, target_rate, dtype):
    frequency, seconds = 440.0, 0.5
    times = [torch.arange(round(rate * seconds), dtype=torch.float64) / rate for rate in (source_rate, target_rate)]
    source, target = ((2 * math.pi * frequency * time).sin() for time in times)
    result = audio.resample(source.to(dtype), source_rate, target_rate)
    assert result.dtype == dtype and result.shape == target.shape
    edge = target_rate // 50  # the ends see the silence around the clip
    assert (result.double() - target)[edge:-edge].abs().max() < 1e-5


def test_resample_to_the_same_rate_is_the_same_wave():
    wave = noise(10)
    assert audio.resample(wave, 16_000, 16_000) is wave


def test_read_resamples(tmp_path):
    wave = noise(4801).clamp(-1, 1)
    audio.write(tmp_path / "clip.wav", wave, 48_000)
    result = audio.read(tmp_path / "clip.wav", 16_000)
    assert torch.equal(result, audio.resample(audio.read(tmp_path / "clip.wav", 48_000), 48_000, 16_000))
    assert result.shape == (1600,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audio.resample(torch.zeros(2, 9), 16_000, 8000), "wave must be (samples,), got (2, 9)"),
        (lambda: audio.resample(torch.zeros(0), 16_000, 8000), "wave must not be empty, got (0,)"),
        (lambda: audio.resample(torch.zeros(9).int(), 1, 2), "wave must be float32 or float64, got torch.int32"),
        (lambda: audio.resample(torch.zeros(9), 0, 8000), "source_rate must be at least 1, got 0"),
        (lambda: audio.resample(torch.zeros(9), 8000, 0), "target_rate must be at least 1, got 0"),
        (
            lambda: audio.resample(torch.zeros(1), 48_000, 8000),
            "wave must be long enough for a sample at 8000 Hz, got 1 at 48000 Hz",
        ),
        (lambda: audio.write("clip.wav", torch.zeros(1, 9), 8000), "wave must be (samples,), got (1, 9)"),
        (lambda: audio.write("clip.wav", torch.zeros(0), 8000), "wave must not be empty, got (0,)"),
        (lambda: audio.write("clip.wav", torch.tensor([math.nan]), 8000), "wave must be finite, got nan at (0,)"),
        (lambda: audio.write("clip.mp3", torch.zeros(9), 8000), "path must be a .wav or .flac file, got 'clip.mp3'"),
        (lambda: audio.write("clip.wav", torch.zeros(9), 0), "sample_rate must be at least 1, got 0"),
        (
            lambda: audio.write("clip.flac", torch.zeros(9), 700_000),
            "sample_rate must be one that FLAC files can have, got 700000",
        ),
        (
            lambda: audio.write("clip.wav", torch.zeros(9), 2**31),
            "sample_rate must be one that WAV files can have, got 2147483648",
        ),
        (lambda: audio.read("clip.wav", 0), "sample_rate must be at least 1, got 0"),
    ],
)
def test_file_argument_errors(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.wav"):
        audio.read(tmp_path / "absent.wav", 22_050)
    with pytest.raises(OSError, match=tmp_path.name):
        audio.read(tmp_path, 22_050)


def _cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("empty.wav", lambda path: path.write_bytes(b""), "path must be a readable audio file, got '{}': "),
        ("text.wav", lambda path: path.write_text("hello" * 99), "path must be a readable audio file, got '{}': "),
        (
            "header.wav",
            lambda path: path.write_bytes(b"RIFF\0\0\0\0WAVE"),
            "path must be a readable audio file, got '{}': ",
        ),
        (
            "none.wav",
            lambda path: soundfile.write(path, np.zeros(0), 8000),
            "path must be an audio file with samples, ",
        ),
        (
            "nan.wav",
            lambda path: soundfile.write(path, np.array([0.0, np.nan]), 8000, subtype="FLOAT"),
            "path must be an audio file of finite samples, got others in '{}'",
        ),
        (
            "cut.flac",
            lambda path: (audio.write(path, noise(40_000), 8000), _cut(path)),
            "path must be a ",
        ),
    ],
)
def test_reading_what_is_not_audio(tmp_path, name, make, message):
    path = tmp_path / name
    make(path)
    with pytest.raises(ValueError) as error:
        audio.read(path, 8000)
    assert str(error.value).startswith(message.format(path)) and "\n" not in str(error.value)


def test_writing_where_there_is_no_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^path must be in a folder that exists, got '.*absent.clip.wav'$"):
        audio.write(tmp_path / "absent" / "clip.wav", torch.zeros(9), 8000)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(IsADirectoryError, match=r"^path must be a file, got the folder '.*folder.wav'$"):
        audio.write(tmp_path / "folder.wav", torch.zeros(9), 8000)


@pytest.mark.parametrize("failing", ["pathlib.Path.write_bytes", "os.replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "clip.wav"
    audio.write(path, torch.ones(9), 8000)
    before = path.read_bytes()

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(type(error)):
            audio.write(path, torch.zeros(500), 8000)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
