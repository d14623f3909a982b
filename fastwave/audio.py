"""Between waveforms and what the models see: log-mel spectrograms, mu-law and linear classes, audio files.

Mel definitions differ between projects, and feeding a model another project's mel gives noise. A :class:`MelSpec`
therefore states every choice, is stored with every checkpoint, and has a named preset for each project that is proven
against that project's own output.
"""

import io
import math
import os
import uuid
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

_LOGS = {"ln": 1.0, "log10": 1.0 / math.log(10.0), "db": 20.0 / math.log(10.0)}  # factors of the natural logarithm


def _fail(name: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{name} must be {expected}, got {got}")


def _check_integer(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        _fail(name, "an integer", repr(value))
    if value < minimum:
        _fail(name, f"at least {minimum}", value)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        _fail(name, "finite", repr(value))


def _check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        _fail(name, "a torch.Tensor", type(value).__name__)
    if value.dtype not in dtypes:
        _fail(name, " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes), value.dtype)
    if 0 in value.shape:
        raise ValueError(f"{name} must not be empty, got {tuple(value.shape)}")


def _check_finite(name: str, value: Tensor) -> None:
    finite = value.isfinite()
    if not finite.all():
        where = tuple((~finite).nonzero()[0].tolist())
        _fail(name, "finite", f"{value[where].item()} at {where}")


# log-mel ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MelSpec:
    """Everything that defines a log-mel spectrogram; the defaults are fastwave's own front end.

    In this order: peak normalisation, pre-emphasis, centred short-time Fourier transform with a periodic Hann window,
    |.|^power, mel bands, floor, logarithm, range to [0, 1], statistics.

    The default range holds all speech: the floor maps to 0, and a full-scale sine reaches at most about 1. ClariNet
    (section 5) found that conditioning on [0, 1] improves the audio. Nothing above 8 kHz is used, so that material
    recorded at 16 kHz fits too.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    sample_rate: int = 22_050  # Hz
    n_fft: int = 1024  # samples, even
    hop_length: int = 256  # samples per frame
    win_length: int = 1024  # samples; the window is centred in n_fft
    n_mels: int = 80
    fmin: float = 40.0  # Hz, lower edge of the first band
    fmax: float = 8000.0  # Hz, upper edge of the last band
    mel_scale: Literal["slaney", "htk"] = "slaney"
    mel_norm: Literal["area", "peak"] = "area"  # what all bands have in common; a peak is 1
    power: float = 1.0  # 1: magnitude, 2: power
    normalized: bool = False  # the window is divided by its norm, the root of its sum of squares
    padding: Literal["reflect", "constant"] = "reflect"  # n_fft / 2 samples at either end; constant is zeros
    log: Literal["ln", "log10", "db"] = "log10"  # db: 20 log10, whatever the power
    floor: float = 1e-5  # what a band is raised to before the logarithm
    log_range: tuple[float, float] | None = (-5.0, 1.0)  # logarithms that become 0 and 1, clipped there; None: as is
    peak: float | None = None  # scales each waveform so that its largest sample has this size; None: as is
    preemphasis: float = 0.0  # k of x[t] - k x[t-1]
    mean: tuple[float, ...] | None = None  # (n_mels,) subtracted last
    std: tuple[float, ...] | None = None  # (n_mels,) divided by last

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "hop_length", "win_length", "n_mels"):
            _check_integer(name, getattr(self, name), minimum=1)
        for name in ("fmin", "fmax", "power", "floor", "preemphasis"):
            _check_number(name, getattr(self, name))
        if self.peak is not None:
            _check_number("peak", self.peak)
        for name in ("log_range", "mean", "std"):
            numbers = getattr(self, name)
            if numbers is not None:
                if not isinstance(numbers, list | tuple):
                    _fail(name, "a tuple of numbers", type(numbers).__name__)
                for number in numbers:
                    _check_number(name, number)
                object.__setattr__(self, name, tuple(numbers))  # JSON has lists; a tuple keeps the spec hashable
        if self.n_fft % 2:  # an odd transform would have one frame less when hop_length divides the samples
            _fail("n_fft", "even", self.n_fft)
        if self.win_length > self.n_fft:
            _fail("win_length", f"at most n_fft = {self.n_fft}", self.win_length)
        if not 0 <= self.fmin < self.fmax:
            _fail("fmin", f"at least 0 and below fmax = {self.fmax}", self.fmin)
        if self.fmax > self.sample_rate / 2:
            _fail("fmax", f"at most sample_rate / 2 = {self.sample_rate / 2}", self.fmax)
        for name, choices in (
            ("mel_scale", ("slaney", "htk")),
            ("mel_norm", ("area", "peak")),
            ("power", (1, 2)),
            ("normalized", (False, True)),
            ("padding", ("reflect", "constant")),
            ("log", tuple(_LOGS)),
        ):
            if getattr(self, name) not in choices:
                _fail(name, " or ".join(map(str, choices)), repr(getattr(self, name)))
        for name in ("floor", "peak"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                _fail(name, "above 0", getattr(self, name))
        if self.log_range is not None and (len(self.log_range) != 2 or self.log_range[0] >= self.log_range[1]):
            _fail("log_range", "(low, high) with low < high", self.log_range)
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean and std must be given together, got only {'std' if self.mean is None else 'mean'}")
        for name in ("mean", "std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != self.n_mels:
                _fail(name, f"{self.n_mels} numbers, one per band", len(getattr(self, name)))
        if self.std is not None and min(self.std) <= 0:
            _fail("std", "above 0 in every band", min(self.std))

    @classmethod
    def preset(cls, name: str) -> "MelSpec":
        """The front end of a project, by the name in ``PRESETS``; ValueError with the names for any other."""
        if name not in PRESETS:
            _fail("preset", f"one of {', '.join(PRESETS)}", repr(name))
        return PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MelSpec":
        """The inverse of :meth:`to_dict`; ValueError for a field that MelSpec does not have."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"MelSpec fields must be among {', '.join(known)}, got {name!r}")
        return cls(**values)


PRESETS = {
    "fastwave": MelSpec(),
    # Its data preparation takes the mel before it scales and pre-emphasises the waveform that the model learns, and
    # z-scores it with the statistics of the data set: add them with dataclasses.replace(spec, mean=..., std=...).
    "r9y9/wavenet_vocoder": MelSpec(fmin=125.0, fmax=7600.0, log="log10", floor=1e-10, log_range=None),
    # Z-scored likewise, with the statistics of stats.npy or stats.h5.
    "kan-bayashi/ParallelWaveGAN": MelSpec(fmin=80.0, fmax=7600.0, log="log10", floor=1e-10, log_range=None),
    # 20 log10 although of a power, so that the floor of 1e-4 is what becomes 0. It pads as librosa did by default
    # (before 0.10) when the published checkpoints were trained.
    "ksw0306/ClariNet": MelSpec(
        fmin=125.0, fmax=7600.0, power=2.0, log="db", floor=1e-4, log_range=(-80.0, 20.0), peak=0.999
    ),
    "NVIDIA/waveglow": MelSpec(fmin=0.0, log="ln", log_range=None),  # Tacotron 2's
    "lmnt-com/diffwave": MelSpec(
        fmin=20.0,
        fmax=11_025.0,
        mel_scale="htk",
        mel_norm="peak",
        normalized=True,
        log="db",
        log_range=(-80.0, 20.0),
    ),
    "BogiHsu/WG-WaveNet": MelSpec(
        hop_length=200, win_length=800, fmin=0.0, log="db", log_range=(-80.0, 20.0), peak=1.0, preemphasis=0.97
    ),
}
PRESETS["ksw0306/FloWaveNet"] = PRESETS["ksw0306/ClariNet"]
# Its training segments alone are padded by (n_fft - hop_length) / 2 samples: their frames are centred half a hop later.
PRESETS["tianrengao/SqueezeWave"] = PRESETS["NVIDIA/waveglow"]


def log_mel(wave: Tensor, spec: MelSpec) -> Tensor:
    """Log-mel spectrogram, differentiable, computed in the dtype and on the device of ``wave``.

    Args:
        wave: (batch, samples), float32 or float64, nominally in [-1, 1], at ``spec.sample_rate``.
        spec: the definition.

    Returns:
        (batch, n_mels, frames), frames = 1 + samples // hop_length; frame m is centred on sample m * hop_length.

    Raises:
        ValueError: another rank or dtype, an empty or non-finite wave, or one too short to reflect.
    """
    _check_tensor("wave", wave, (torch.float32, torch.float64))
    if wave.ndim != 2:
        _fail("wave", "(batch, samples)", tuple(wave.shape))
    _check_finite("wave", wave)
    padding = spec.n_fft // 2
    if spec.padding == "reflect" and wave.shape[1] <= padding:
        _fail("wave", f"longer than {padding} samples to reflect n_fft / 2 of them", wave.shape[1])

    wave = preemphasized(peak_normalized(wave, spec), spec.preemphasis)
    window, filterbank, mean, std = _constants(spec, wave.dtype, wave.device)
    # Mixed precision around this must not round the bands to the 8 bits of bfloat16.
    with torch.autocast(wave.device.type, enabled=False):
        spectrum = torch.stft(
            wave,
            spec.n_fft,
            hop_length=spec.hop_length,
            win_length=spec.win_length,
            window=window,
            center=True,
            pad_mode=spec.padding,
            return_complex=True,
        )  # (batch, n_fft / 2 + 1, frames)
        mel = filterbank @ spectrum.abs().pow(spec.power)
    mel = mel.clamp(min=spec.floor).log() * _LOGS[spec.log]
    if spec.log_range is not None:
        low, high = spec.log_range
        mel = ((mel - low) / (high - low)).clamp(0.0, 1.0)
    return mel if mean is None else (mel - mean) / std


def peak_normalized(wave: Tensor, spec: MelSpec) -> Tensor:
    """wave (batch, samples), each row scaled to ``spec.peak`` where there is one; silence stays silent."""
    if spec.peak is None:
        return wave
    largest = wave.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(wave.dtype).tiny)
    return wave * (spec.peak / largest)


def preemphasized(wave: Tensor, coefficient: float) -> Tensor:
    """x[t] - coefficient x[t - 1] of wave (batch, samples), before which there is silence."""
    return wave if coefficient == 0 else torch.cat((wave[:, :1], wave[:, 1:] - coefficient * wave[:, :-1]), dim=1)


def linear_spectrum(mel: Tensor, spec: MelSpec) -> Tensor:
    """Magnitudes of a short-time Fourier transform whose log-mel is ``mel``, as nearly as a spectrum's can be.

    Undoes statistics, range and logarithm; then spreads the bands over the bins by multiplicative updates (Lee and
    Seung, 2001), which minimise the Kullback-Leibler divergence from the bands and leave no bin below 0; then undoes
    the window's norm and, bin by bin, pre-emphasis. The scale stays that of peak normalisation, and what the floor and
    the range clipped stays clipped.

    Args:
        mel: (batch, n_mels, frames), float32 or float64.
        spec: its definition.

    Returns:
        (batch, n_fft / 2 + 1, frames), for a periodic Hann window of ``spec.win_length``; 0 outside all bands.

    Raises:
        ValueError: not a mel of ``spec``; a pre-emphasis of 1 or -1, which loses the lowest or highest bin.
    """
    check_mel(mel, spec)
    if abs(spec.preemphasis) == 1:
        _fail("preemphasis", "other than 1 and -1, which cannot be undone", spec.preemphasis)
    _, filterbank, mean, std = _constants(spec, mel.dtype, mel.device)
    if mean is not None:
        mel = mel * std + mean
    if spec.log_range is not None:
        low, high = spec.log_range
        mel = low + (high - low) * mel
    bands = (mel / _LOGS[spec.log]).exp()
    weights = filterbank.sum(dim=0)[:, None].clamp(min=torch.finfo(mel.dtype).tiny)
    bins = torch.ones_like(weights)
    for _ in range(100):  # by then the error is far below that of speech generated from it
        predicted = filterbank @ bins
        ratios = torch.where(predicted > 0, bands / predicted, 0.0)  # a narrow band may hold no bin
        bins = bins * (filterbank.T @ ratios) / weights
    bins = bins.pow(1 / spec.power)
    if spec.normalized:
        bins = bins * torch.hann_window(spec.win_length, dtype=torch.float64).norm()
    omega = torch.linspace(0, math.pi, spec.n_fft // 2 + 1, dtype=torch.float64)[:, None]
    emphasis = (1 - spec.preemphasis * torch.polar(torch.ones_like(omega), -omega)).abs()
    return bins / emphasis.to(bins)


def check_mel(mel: Tensor, spec: MelSpec) -> None:
    """ValueError unless ``mel`` is (batch, spec.n_mels, frames), float32 or float64, not empty, and finite."""
    if isinstance(mel, Tensor) and (mel.ndim != 3 or mel.shape[1] != spec.n_mels):
        _fail("mel", f"(batch, {spec.n_mels}, frames)", tuple(mel.shape))
    _check_tensor("mel", mel, (torch.float32, torch.float64))
    _check_finite("mel", mel)


@lru_cache(maxsize=32)
def _constants(
    spec: MelSpec, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Window, filter bank, mean and std of ``spec``, computed in float64 and rounded once."""
    with torch.inference_mode(False):  # these outlive the caller's mode, and training may use them next
        window = torch.hann_window(spec.win_length, periodic=True, dtype=torch.float64)
        if spec.normalized:
            window = window / window.norm()
        mean, std = (
            None if column is None else torch.tensor(column, dtype=torch.float64)[:, None].to(device, dtype)
            for column in (spec.mean, spec.std)
        )
        return window.to(device, dtype), mel_filterbank(spec).to(device, dtype), mean, std


def mel_filterbank(spec: MelSpec) -> Tensor:
    """Triangles over the FFT bins, evenly spaced on the mel scale, (n_mels, n_fft / 2 + 1) in float64."""
    limits = torch.tensor([spec.fmin, spec.fmax], dtype=torch.float64)
    low, high = _hz_to_mel(limits, spec.mel_scale).tolist()
    mels = torch.linspace(low, high, spec.n_mels + 2, dtype=torch.float64)
    edges = _mel_to_hz(mels, spec.mel_scale)[:, None]
    bins = torch.arange(spec.n_fft // 2 + 1, dtype=torch.float64) * (spec.sample_rate / spec.n_fft)  # Hz
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return triangles * (2.0 / (upper - lower)) if spec.mel_norm == "area" else triangles


# Slaney's scale (Auditory Toolbox, 1998) has 3 mel per 200 Hz up to 1 kHz, and 27 per factor of 6.4 above; HTK's (its
# book, section 5.4) is 2595 log10(1 + f / 700).
_SLANEY_STEP = math.log(6.4) / 27.0


def _hz_to_mel(hz: Tensor, scale: str) -> Tensor:
    if scale == "htk":
        return 2595.0 * (1.0 + hz / 700.0).log10()
    return torch.where(hz < 1000.0, hz * 0.015, 15.0 + (hz / 1000.0).log() / _SLANEY_STEP)


def _mel_to_hz(mel: Tensor, scale: str) -> Tensor:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return torch.where(mel < 15.0, mel / 0.015, 1000.0 * ((mel - 15.0) * _SLANEY_STEP).exp())


# classes ---------------------------------------------------------------------------------------------------------


def mulaw_encode(wave: Tensor, n_classes: int) -> Tensor:
    """mu-law companding of [-1, 1] to [-1, 1], mu = n_classes - 1 (WaveNet, section 2.2); any shape and float dtype.

    Raises:
        ValueError: n_classes below 2 or above 65,536.
    """
    _check_classes(n_classes)
    mu = n_classes - 1
    return wave.sign() * (mu * wave.abs()).log1p() / math.log1p(mu)


def mulaw_decode(companded: Tensor, n_classes: int) -> Tensor:
    """The inverse of :func:`mulaw_encode`."""
    _check_classes(n_classes)
    mu = n_classes - 1
    return companded.sign() * (companded.abs() * math.log1p(mu)).expm1() / mu


def mulaw_quantize(wave: Tensor, n_classes: int) -> Tensor:
    """mu-law class of each sample, int64 of the same shape; samples outside [-1, 1] get the first or last class.

    As r9y9/wavenet_vocoder has it: the companded sample, mapped to [0, n_classes - 1], and truncated. The value of a
    class is then its lower edge, and must not fall to the class below when it is rounded to float32: that moves the
    position by less than mu / 2^24, which is therefore added.

    Raises:
        ValueError: a wave that is empty, not floating point or not finite; n_classes below 2 or above 65,536.
    """
    _check_classes(n_classes)
    mu = n_classes - 1
    companded = mulaw_encode(_unit_float64(wave), n_classes)
    return ((companded + 1.0) / 2.0 * mu + mu * 2.0**-24).long()


def mulaw_dequantize(index: Tensor, n_classes: int) -> Tensor:
    """float32 sample of each mu-law class, of the same shape; ValueError for a class that there is not."""
    return _look_up(index, decode_table(n_classes, "mulaw"))


def linear_quantize(wave: Tensor, n_classes: int) -> Tensor:
    """Which of ``n_classes`` equal bins of [-1, 1] holds each sample; otherwise as :func:`mulaw_quantize`."""
    _check_classes(n_classes)
    return ((_unit_float64(wave) + 1.0) / 2.0 * n_classes).long().clamp(max=n_classes - 1)


def linear_dequantize(index: Tensor, n_classes: int) -> Tensor:
    """float32 centre of each linear bin, of the same shape; ValueError for a bin that there is not."""
    return _look_up(index, decode_table(n_classes, "linear"))


def decode_table(n_classes: int, kind: Literal["mulaw", "linear"]) -> Tensor:
    """The sample that each class stands for, (n_classes,) float32, rising.

    ``"mulaw"`` decodes equal steps from -1 to 1, both included; ``"linear"`` gives the centres of equal bins.

    Raises:
        ValueError: another kind; n_classes below 2 or above 65,536.
    """
    _check_classes(n_classes)
    mu = n_classes - 1
    classes = torch.arange(n_classes, dtype=torch.float64)
    if kind == "mulaw":
        return mulaw_decode(2.0 * classes / mu - 1.0, n_classes).float()
    if kind == "linear":
        return ((2.0 * classes + 1.0) / n_classes - 1.0).float()
    _fail("kind", "mulaw or linear", repr(kind))


def _check_classes(n_classes: int) -> None:
    _check_integer("n_classes", n_classes, minimum=2)
    if n_classes > 65_536:  # 16 bits; float32 could not tell much finer classes apart
        _fail("n_classes", "at most 65536", n_classes)


def _unit_float64(wave: Tensor) -> Tensor:
    _check_tensor("wave", wave, (torch.float32, torch.float64, torch.float16, torch.bfloat16))
    _check_finite("wave", wave)
    return wave.double().clamp(-1.0, 1.0)


def _look_up(index: Tensor, table: Tensor) -> Tensor:
    _check_tensor("index", index, (torch.int64, torch.int32, torch.int16, torch.uint8))
    index = index.long()
    outside = index[(index < 0) | (index >= len(table))]
    if len(outside):
        _fail("index", f"from 0 to {len(table) - 1}", outside[0].item())
    return table.to(index.device)[index]


# files -----------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike, sample_rate: int) -> Tensor:
    """Reads an audio file (WAV, FLAC and whatever else libsndfile knows), mixed to mono and resampled.

    Args:
        path: the file.
        sample_rate: Hz, of the result.

    Returns:
        (samples,) float32; integer formats are scaled to [-1, 1).

    Raises:
        OSError: the file is missing, a folder, or may not be read.
        ValueError: it is not audio or is damaged, has no samples, or has one that is not finite.
    """
    import soundfile

    _check_integer("sample_rate", sample_rate, minimum=1)
    with open(path, "rb") as file:
        try:
            channels, source_rate = soundfile.read(file, dtype="float32", always_2d=True)  # (samples, channels)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"path must be a readable audio file, got {str(path)!r}: {error.error_string}") from None
    if not len(channels):
        raise ValueError(f"path must be an audio file with samples, got none in {str(path)!r}")
    wave = torch.from_numpy(channels).mean(dim=1)
    if not wave.isfinite().all():
        raise ValueError(f"path must be an audio file of finite samples, got others in {str(path)!r}")
    return resample(wave, source_rate, sample_rate)


def write(path: str | os.PathLike, wave: Tensor, sample_rate: int) -> None:
    """Writes a mono file of 16-bit PCM, which appears whole or not at all.

    Args:
        path: ends in .wav or .flac; an existing file is replaced.
        wave: (samples,), floating point; clipped to [-1, 1].
        sample_rate: Hz.

    Raises:
        OSError: the folder is missing, or the file cannot be written.
        ValueError: another suffix, shape or dtype, an empty or non-finite wave, a rate that the format does not have.
    """
    import soundfile

    path = Path(path)
    file_format = {".wav": "WAV", ".flac": "FLAC"}.get(path.suffix.lower())
    if file_format is None:
        _fail("path", "a .wav or .flac file", repr(str(path)))
    _check_integer("sample_rate", sample_rate, minimum=1)
    samples = _unit_float64(wave)
    if wave.ndim != 1:
        _fail("wave", "(samples,)", tuple(wave.shape))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {str(path)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"path must be a file, got the folder {str(path)!r}")
    # Rounded here to the nearest of the steps that `read` returns, so that a 16-bit file survives a round trip.
    integers = (samples.detach().cpu() * 32_768.0).round().clamp(max=32_767.0).to(torch.int16)
    encoded = io.BytesIO()
    try:
        soundfile.write(encoded, integers.numpy(), sample_rate, subtype="PCM_16", format=file_format)
    except (soundfile.LibsndfileError, OverflowError):  # 16-bit mono is always possible: only the rate is left
        _fail("sample_rate", f"one that {file_format} files can have", sample_rate)
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")  # beside it: a rename is atomic within a file system
    try:
        temporary.write_bytes(encoded.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def resample(wave: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Band-limited resampling with soxr's very high quality; not differentiable.

    Args:
        wave: (samples,), float32 or float64.
        source_rate: Hz, of ``wave``.
        target_rate: Hz, of the result.

    Returns:
        samples * target_rate / source_rate samples, rounded; ``wave`` itself where the rates agree.

    Raises:
        ValueError: another shape or dtype, an empty wave, or one so short that nothing is left; a rate below 1.
    """
    _check_tensor("wave", wave, (torch.float32, torch.float64))
    if wave.ndim != 1:
        _fail("wave", "(samples,)", tuple(wave.shape))
    _check_integer("source_rate", source_rate, minimum=1)
    _check_integer("target_rate", target_rate, minimum=1)
    if source_rate == target_rate:
        return wave
    import soxr

    resampled = torch.from_numpy(soxr.resample(wave.detach().cpu().numpy(), source_rate, target_rate, quality="VHQ"))
    if not len(resampled):
        _fail("wave", f"long enough for a sample at {target_rate} Hz", f"{len(wave)} at {source_rate} Hz")
    return resampled.to(wave.device)
