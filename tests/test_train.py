"""Training: which segments it reads, that it learns, and that a run that was stopped ends like one that was not."""

import dataclasses
import json
import math
import pickle
import re
import signal
from pathlib import Path

import pytest
import soundfile
import torch

from fastwave import audio, checkpoint, models
from fastwave.audio import MelSpec
from fastwave.emphasis import Emphasis
from fastwave.models import ClariNetStudentConfig, WaveNetConfig
from fastwave.train import loop
from fastwave.train.data import Dataset, find_clips, select, standardized
from fastwave.train.options import Learner
from fastwave.train.student import StudentTraining
from fastwave.train.teacher import TeacherTraining

LJ = Path(__file__).parents[2] / "shared" / "data" / "lj"
SPEC = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=6, fmax=4000.0)
TEACHER = WaveNetConfig(
    mel=SPEC,
    residual_channels=6,
    gate_channels=6,
    skip_channels=6,
    kernel_size=2,
    dilations=(1, 2, 4),
    upsample_scales=(4,),
    cond_repeat=4,
)
STUDENT = ClariNetStudentConfig(
    mel=SPEC,
    flows=((1, 2), (1, 2)),
    front_width=4,
    residual_channels=6,
    gate_channels=6,
    skip_channels=6,
    upsample_scales=(4,),
    cond_repeat=4,
)


def tone(samples: int, seed: int, sample_rate: int = 8000) -> torch.Tensor:
    """A few harmonics in noise; no two places are the same."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / sample_rate
    pitch = 100 + 100 * torch.rand((), generator=generator)
    harmonics = sum(torch.sin(2 * math.pi * pitch * k * time) / k for k in (1, 2, 3))
    return 0.2 * harmonics + 0.01 * torch.randn(samples, generator=generator)


@pytest.fixture
def clips(tmp_path):
    """A folder of three short clips."""
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(["a.wav", "b.flac", "more/c.wav"]):
        audio.write(folder / name, tone(4000 + 777 * seed, seed), 8000)
    return folder


@pytest.fixture
def options(tmp_path, clips):
    """Makes the options of a tiny run: of ``TeacherTraining``, unless a test says ``StudentTraining``."""

    def make(kind: type = TeacherTraining, **changes):
        config = tmp_path / f"{kind.__name__}.json"
        config.write_text(
            json.dumps(checkpoint.config_to_dict({TeacherTraining: TEACHER, StudentTraining: STUDENT}[kind]))
        )
        values = {"data": clips, "out": tmp_path / "run", "config": config, "steps": 6, "frames": 80, "warmup": 2}
        return kind(**(values | changes))

    return make


def log_lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# data ----------------------------------------------------------------------------------------------------------------


def test_any_folder(clips):
    found = find_clips(clips)
    assert [(clip.name, clip.sample_rate, clip.samples) for clip in found] == [
        ("a", 8000, 4000),
        ("b", 8000, 4777),
        ("more/c", 8000, 5554),
    ]


def test_lj_speech_layout(tmp_path):
    (tmp_path / "wavs").mkdir()
    for name in ("wavs/x-2.wav", "x-1.flac", "wavs/unlisted.wav"):
        audio.write(tmp_path / name, tone(100, 0), 8000)
    (tmp_path / "metadata.csv").write_text("x-2|A title.|a title\nx-1|Another.\n", encoding="utf-8")
    found = find_clips(tmp_path)
    assert [clip.name for clip in found] == ["x-2", "x-1"]
    assert [clip.path for clip in found] == [tmp_path / "wavs" / "x-2.wav", tmp_path / "x-1.flac"]


def empty_wav(folder: Path) -> None:
    soundfile.write(folder / "bad.wav", [], 8000)


def no_bytes(folder: Path) -> None:
    (folder / "bad.wav").touch()


def no_audio(folder: Path) -> None:
    (folder / "bad.wav").write_bytes(b"not audio at all, whatever its name says")


def no_file(folder: Path) -> None:
    (folder / "metadata.csv").write_text("bad|Text.\n")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: folder.rmdir(), FileNotFoundError, "data must be a folder, got '.*data'"),
        (lambda folder: None, FileNotFoundError, "data must be a folder with WAV or FLAC files, got none in '.*data'"),
        (no_file, FileNotFoundError, "data must have the clips of its metadata.csv, got none for 'bad' in '.*data'"),
        (empty_wav, ValueError, r"data must be audio files with samples, got none in '.*bad\.wav'"),
        (no_bytes, ValueError, r"data must be readable audio files, got '.*bad\.wav': .+"),
        (no_audio, ValueError, r"data must be readable audio files, got '.*bad\.wav': .+"),
    ],
)
def test_bad_data(tmp_path, damage, error, message):
    folder = tmp_path / "data"
    folder.mkdir()
    damage(folder)
    with pytest.raises(error, match=message):
        find_clips(folder)


def test_a_file_that_breaks_off(clips):
    """Its header is whole, so that only reading finds it."""
    flac = clips / "b.flac"
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    dataset = Dataset([clip for clip in find_clips(clips) if clip.name == "b"], SPEC, frames=10)
    with pytest.raises(ValueError, match=r"b\.flac"):
        dataset.draw(1, seed=0, step=0)


def test_select(clips):
    found = find_clips(clips)
    matching, others = select(found, ["a", "more/*"])
    assert [clip.name for clip in matching] == ["a", "more/c"]
    assert [clip.name for clip in others] == ["b"]
    assert select(found, []) == ([], found)
    with pytest.raises(ValueError, match=r"clips must be names of clips or globs of them, got 'd\*', which matches"):
        select(found, ["a", "d*"])


def test_segments_are_aligned_with_the_mel_of_the_whole_clip(clips):
    hop, frames, context = SPEC.hop_length, 12, 2
    dataset = Dataset(find_clips(clips), SPEC, frames, context)
    whole = {clip.name: audio.read(clip.path, 8000) for clip in dataset.clips}
    for step in range(20):
        segments = dataset.draw(3, seed=1, step=step)
        assert segments.wave.shape == (3, frames * hop)
        assert segments.mel.shape == (3, SPEC.n_mels, frames + 2 * context)
        for wave, mel, name in zip(*segments, strict=True):
            windows = whole[name].unfold(0, frames * hop, hop)
            (start,) = (windows == wave).all(1).nonzero()[:, 0].tolist()
            full = audio.log_mel(whole[name][None], SPEC)[0]
            padded = torch.nn.functional.pad(full[None], (context, context), "replicate")[0]
            assert torch.equal(mel, padded[:, start : start + frames + 2 * context])


def test_speech_is_as_loud_as_the_mel_says(clips):
    spec = dataclasses.replace(SPEC, peak=0.5)
    dataset, found = Dataset(find_clips(clips), spec, 12), find_clips(clips)
    for i, clip in enumerate(found):
        whole = audio.read(clip.path, 8000)
        wave, mel = dataset.read(i)
        assert wave.abs().max().item() == pytest.approx(0.5)
        torch.testing.assert_close(wave, whole * (0.5 / whole.abs().max()))
        assert torch.equal(mel, audio.log_mel(whole[None], spec)[0])


def test_speech_is_emphasised_as_a_whole(clips):
    found, emphasis = find_clips(clips), Emphasis(coefficient=0.9, gain=2.0)
    dataset = Dataset(found, SPEC, 12, emphasis=emphasis)
    for i, clip in enumerate(found):
        whole = audio.read(clip.path, 8000)
        wave, mel = dataset.read(i)
        assert torch.equal(wave, emphasis(whole[None])[0])
        assert torch.equal(mel, audio.log_mel(whole[None], SPEC)[0])


def test_batches_depend_on_seed_and_step_alone(clips):
    first, second = (Dataset(find_clips(clips), SPEC, frames=10) for _ in range(2))
    first.draw(4, seed=0, step=0)
    assert torch.equal(first.draw(4, seed=0, step=7).wave, second.draw(4, seed=0, step=7).wave)
    assert not torch.equal(first.draw(4, seed=0, step=7).wave, first.draw(4, seed=0, step=8).wave)
    assert not torch.equal(first.draw(4, seed=0, step=7).wave, first.draw(4, seed=1, step=7).wave)


def test_every_position_can_be_drawn(tmp_path):
    """Two clips of 3 and 1 positions."""
    for name, hops in (("a", 12), ("b", 10)):
        audio.write(tmp_path / f"{name}.wav", tone(16 * hops + 5, seed=hops), 8000)
    dataset = Dataset(find_clips(tmp_path), SPEC, frames=10)
    drawn = dataset.draw(400, seed=0, step=0)
    assert len({tuple(wave[:4].tolist()) for wave in drawn.wave}) == 4
    assert 60 < drawn.names.count("b") < 140  # a quarter of the positions


def test_spread_reaches_both_ends_of_a_clip(clips):
    dataset = Dataset(find_clips(clips), SPEC, frames=10)
    for clip in range(3):
        segments = dataset.spread(clip, 3)
        whole = audio.read(dataset.clips[clip].path, 8000)
        assert segments.names == [dataset.clips[clip].name] * 3
        assert torch.equal(segments.wave[0], whole[:160])
        end = len(whole) // 16 * 16
        assert torch.equal(segments.wave[2], whole[end - 160 : end])


def test_clips_of_another_rate_are_resampled(tmp_path):
    audio.write(tmp_path / "a.wav", tone(6001, 0, sample_rate=11_025), 11_025)
    (clip,) = find_clips(tmp_path)
    dataset = Dataset([clip], SPEC, frames=10)
    whole = audio.read(clip.path, 8000)
    assert len(whole) == pytest.approx(clip.length(8000), abs=1)
    assert torch.equal(dataset.spread(0, 1).wave[0], whole[:160])


def test_short_clips_are_left_out(clips):
    audio.write(clips / "short.wav", tone(159, 0), 8000)
    assert "short" not in [clip.name for clip in Dataset(find_clips(clips), SPEC, frames=10).clips]
    with pytest.raises(ValueError, match="clips must have one of 16000 samples or more at 8000 Hz, got none"):
        Dataset(find_clips(clips), SPEC, frames=1000)


# the loop ------------------------------------------------------------------------------------------------------------


def test_standardized_mels_have_mean_0_and_deviation_1(clips):
    found = find_clips(clips)
    spec = standardized(SPEC, found)
    mels = [audio.log_mel(audio.read(clip.path, spec.sample_rate)[None], spec)[0] for clip in found]
    std, mean = torch.std_mean(torch.cat(mels, 1), 1)
    torch.testing.assert_close(mean, torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.ones(6), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="clips must have one of 33 samples or more, got none"):
        standardized(SPEC, [])


def test_learning_rate(options):
    training = options(steps=1000, warmup=100, learning_rate=1e-3, final_rate=0.1)
    assert training.rate(0) == pytest.approx(1e-5, rel=1e-3)
    assert training.rate(49) == pytest.approx(5e-4, rel=1e-2)
    assert training.rate(500) == pytest.approx(5.5e-4)
    assert training.rate(1000) == pytest.approx(1e-4)
    rates = [training.rate(step) for step in range(1001)]
    assert max(rates) <= 1e-3
    assert rates[99:] == sorted(rates[99:], reverse=True)


def test_gradients_are_clipped_together_or_one_by_one():
    module = torch.nn.Linear(2, 1)
    for clip, expected in (("all", (1.2, 1.6, 4.8)), ("each", (3.0, 4.0, 5.2))):
        module.weight.grad, module.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
        learner = Learner(module, torch.optim.Adam(module.parameters()), 5.2, clip)
        assert learner.clip_gradient() == pytest.approx(13)
        clipped = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        torch.testing.assert_close(clipped, torch.tensor(expected))


@pytest.mark.parametrize(("kind", "drop"), [(TeacherTraining, 0.5), (StudentTraining, 0.1)])
def test_it_learns(options, kind, drop):
    training = options(kind, steps=60, interval=5, learning_rate=1e-2, clip_norm=10.0, validation_clips=("b",))
    loop.run(training, quiet=True)
    first, *_, last = log_lines(training.out)
    assert last["step"] == 60
    assert last["loss"] < first["loss"] - drop
    assert last["validation_loss"] < first["validation_loss"] - drop
    loaded = models.load(training.out / "model")
    dataset = Dataset(select(find_clips(training.data), ["b"])[0], SPEC, training.frames)
    assert loop.validation_loss(loaded, dataset, training.seed) == pytest.approx(last["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("with_config", [False, True])
def test_a_model_to_start_with(options, tmp_path, with_config):
    torch.manual_seed(5)
    first = models.WaveNet(TEACHER)
    first.save(tmp_path / "first")
    training = options(start=str(tmp_path / "first"), steps=1, learning_rate=1e-9)
    training = training if with_config else dataclasses.replace(training, config=None)
    loop.run(training, quiet=True)
    last = models.load(training.out / "model")
    assert last.config == first.config
    torch.testing.assert_close(last.state_dict(), first.state_dict(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [TeacherTraining, StudentTraining])
def test_an_interrupted_run_ends_like_another(options, kind, monkeypatch, tmp_path):
    whole = options(kind, out=tmp_path / "whole", interval=4)
    loop.run(whole, quiet=True)

    pieces = dataclasses.replace(whole, out=tmp_path / "pieces")
    unchanged = kind.rate

    def ctrl_c(training, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return unchanged(training, step)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "rate", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            loop.run(pieces, quiet=True)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(pieces.out / "checkpoint.pt", weights_only=True)["step"] == 3  # it has ended its step
    models.load(pieces.out / "model")
    loop.run(dataclasses.replace(pieces, minutes=1e-9), quiet=True)
    assert log_lines(pieces.out)[-1]["step"] == 4  # at least one, however short the time
    loop.run(pieces, quiet=True)

    ends = [torch.load(run.out / "checkpoint.pt", weights_only=True) for run in (whole, pieces)]
    assert [end["step"] for end in ends] == [6, 6]
    for part in ("modules", "optimizers"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)
    lines = [[{**line, "seconds": 0} for line in log_lines(run.out)] for run in (whole, pieces)]
    assert lines[0] == lines[1]  # each with the means since the one before
    loop.run(pieces, quiet=True)  # nothing is left to do
    assert torch.load(pieces.out / "checkpoint.pt", weights_only=True)["step"] == 6


@pytest.mark.parametrize("first", ["adam", "soap"])
def test_a_run_goes_on_with_its_own_optimizer(options, first):
    training = options(optimizer=first)
    loop.run(dataclasses.replace(training, minutes=1e-9), quiet=True)
    before = (training.out / "checkpoint.pt").read_bytes()
    other = dataclasses.replace(training, optimizer={"adam": "soap", "soap": "adam"}[first])
    with pytest.raises(ValueError, match="out must hold a checkpoint with the same optimizer, got another in"):
        loop.run(other, quiet=True)
    assert (training.out / "checkpoint.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(options, monkeypatch):
    training = options(data=options().data / "more", interval=1)
    unchanged = models.WaveNet.loss
    calls = []

    def loss(self, wave, mel, **named):
        calls.append(1)
        return unchanged(self, wave, mel, **named) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(models.WaveNet, "loss", loss)
    message = "loss and gradient must be finite, got nan and nan at step 2 on c, c"
    with pytest.raises(FloatingPointError, match=message):
        loop.run(training, quiet=True)
    state = torch.load(training.out / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["modules"]["model"].values())


def test_output(options, capsys):
    training = options(interval=3, validation_clips=("b",), exclude_clips=("more/*",))
    loop.run(training, quiet=True)
    assert capsys.readouterr() == ("", "")
    loop.run(dataclasses.replace(training, steps=9), quiet=False)
    out, err = capsys.readouterr()
    assert out.startswith("WaveNet with ") and out.splitlines()[0].endswith(" s in 1 clips")
    assert re.search(r"step 9, seconds .*, loss .*, validation_loss ", out)
    assert "9/9" in err
    lines = log_lines(training.out)
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert set(lines[0]) == {"step", "seconds", "loss", "gradient_norm", "validation_loss", "learning_rate"}


def test_a_slow_precision_is_named(options, capsys, monkeypatch):
    message = "precision bfloat16 is far slower than float32 on this CPU"
    for precision in ("bfloat16", "float32"):
        for fast in (True, False):
            monkeypatch.setattr(loop, "has_bfloat16_products", lambda fast=fast: fast)
            loop.run(options(precision=precision, steps=1, out=options().out / f"{precision}-{fast}"))
            assert (message in capsys.readouterr().out) == (precision == "bfloat16" and not fast)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"frames": -1}, "frames must be at least 1, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"clip_norm": math.nan}, "clip_norm must be above 0, got nan"),
        ({"minutes": -1.0}, "minutes must be above 0, got -1.0"),
        ({"input_noise": -0.1}, "input_noise must be at least 0, got -0.1"),
        ({"speeds": (0.4,)}, "speeds must be from 0.5 to 2, got 0.4"),
        ({"speeds": (1.0, math.nan)}, "speeds must be from 0.5 to 2, got nan"),
        ({"beta": 1.5}, "beta must be from 0 to 1, got 1.5"),
        ({"beta": math.nan}, "beta must be from 0 to 1, got nan"),
        ({"free_running": -1.0}, "free_running must be at least 0, got -1.0"),
        ({"free_running": 1.0}, "frames must be at least 129 where the model runs free, got 80"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"final_rate": 2.0}, "final_rate must be from 0 to 1, got 2.0"),
        ({"seed": -1}, "seed must be from 0 to 2**31 - 1, got -1"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "cuda:99"}, "device must be one that is here"),
        ({"min_sample_rate": 8001}, "clips must have one of 1280 samples or more at 8000 Hz, got none"),
        ({"exclude_clips": ("*",)}, "clips must have one of 1280 samples or more at 8000 Hz, got none"),
        ({"start": "nobody"}, "no voice 'nobody'"),
        ({"start": "lj-stft"}, "start must be a WaveNet, got 'lj-stft'"),
        ({"start": "lj-teacher"}, "start must have the shape that config says, got 'lj-teacher'"),
        ({"validation_clips": ("nobody",)}, "clips must be names of clips or globs of them, got 'nobody'"),
    ],
)
def test_bad_options(options, changes, message):
    training = options(**changes)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        loop.run(training, quiet=True)
    assert not training.out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config must be a JSON file, got '.*bad.json': "),
        ('{"mell": {}}', "WaveNetConfig has no field mell"),
        ("{}", "WaveNetConfig"),
    ],
)
def test_bad_config(options, tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        loop.run(options(config=tmp_path / "bad.json"), quiet=True)


@pytest.mark.parametrize("name", ["beta", "free_running"])
def test_options_of_a_gaussian_alone(options, tmp_path, name):
    path = tmp_path / "mixture.json"
    config = dataclasses.replace(TEACHER, distribution="mixture_of_gaussians")
    path.write_text(json.dumps(checkpoint.config_to_dict(config)))
    training = options(config=path, **{name: 0.5})
    with pytest.raises(ValueError, match=f"{name} must be 0 where the distribution is 'mixture_of_gaussians', got 0.5"):
        loop.run(training, quiet=True)
    assert not training.out.exists()


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("it-was-executed"),)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"junk"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(pickle.dumps(Trap())),
        lambda path: torch.save(Trap(), path),
        lambda path: torch.save({"step": 3}, path),
        lambda path: torch.save([], path),
    ],
    ids=["empty", "junk", "half", "pickle", "torch pickle", "incomplete", "list"],
)
def test_a_corrupt_checkpoint(options, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    training = options()
    loop.run(training, quiet=True)
    damage(training.out / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"out must hold a checkpoint of this command or none, got a corrupt '.*\.pt'"):
        loop.run(training, quiet=True)
    assert not Path("it-was-executed").exists()


def test_a_checkpoint_of_another_configuration(options, tmp_path):
    loop.run(options(), quiet=True)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(checkpoint.config_to_dict(dataclasses.replace(TEACHER, skip_channels=5))))
    with pytest.raises(ValueError, match="out must hold a checkpoint of the same configuration, got another"):
        loop.run(options(config=other), quiet=True)


@pytest.mark.skipif(not LJ.is_dir(), reason="needs the clips of LJ Speech beside the repository")
@pytest.mark.parametrize("kind", [TeacherTraining, StudentTraining])
def test_the_built_in_configurations(kind, tmp_path):
    """A step of each on real speech, in bfloat16; and its weights survive the folder."""
    clips = ("LJ050-026[5-8]",)
    training = kind(data=LJ, out=tmp_path, steps=1, batch=1, frames=8, exclude_clips=clips, min_sample_rate=22_050)
    loop.run(training, quiet=True)
    (line,) = log_lines(tmp_path)
    assert math.isfinite(line["loss"])
    model = models.load(tmp_path / "model")
    mel = torch.rand(1, 80, 4, generator=torch.Generator().manual_seed(0))
    assert model.config.mel.hop_length == 256
    if kind is StudentTraining:
        assert model.generate(mel).shape == (1, 1024)


def test_dequantization(options):
    """Uniform noise of one 16-bit quantum, above the sample (ClariNet, section 3.1)."""
    wave, mel = 0.1 * torch.randn(2, 1600), torch.randn(2, 6, 100)
    model = models.WaveNet(TEACHER)
    read = []
    model.loss = lambda wave, mel, past, beta: read.append(wave) or torch.zeros(())
    for dequantize in (False, True):
        list(TeacherTraining.objective(model, options(dequantize=dequantize)).losses(wave, mel, 0))
    assert torch.equal(read[0], wave)
    quanta = 32768 * (read[1].double() - wave)
    assert 0 <= quanta.min() < 0.01 and 0.99 < quanta.max() < 1.01 and abs(quanta.mean() - 0.5) < 0.05


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_a_clip_read_faster_or_slower(tmp_path, speed):
    """A tone of 1 kHz, from 22,050 Hz, comes out higher, and shorter, by that factor."""
    audio.write(tmp_path / "tone.wav", 0.5 * torch.sin(2 * math.pi * 1000 / 22_050 * torch.arange(22_050)), 22_050)
    (clip,) = find_clips(tmp_path)
    dataset = Dataset([dataclasses.replace(clip, speed=speed)], SPEC, frames=40)
    wave, mel = dataset.read(0)
    assert abs(len(wave) - 8000 / speed) <= 1 and dataset.seconds == pytest.approx(1 / speed)
    assert mel.shape[1] == 1 + len(wave) // SPEC.hop_length
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave)), 2**16).abs()
    assert spectrum.argmax().item() * 8000 / 2**16 == pytest.approx(1000 * speed, rel=1e-3)
    assert dataset.spread(0, 3).wave.shape == (3, 40 * SPEC.hop_length)  # to its end


def test_a_run_reads_its_clips_at_other_speeds_too(options, capsys):
    """Each of the three clips, three times."""
    seconds = 14331 / 8000
    loop.run(options(speeds=(0.8, 1.25), steps=1))
    assert f"{seconds * (1 + 1.25 + 0.8):.0f} s in 9 clips" in capsys.readouterr().out


def test_input_noise(options):
    """What the model reads is noisy, at a level of each row's own, and what it predicts is not."""
    wave, mel = 0.1 * torch.randn(400, 1600), torch.randn(400, 6, 100)
    model, read = models.WaveNet(TEACHER), []
    model.loss = lambda wave, mel, past, beta: read.append((wave, past)) or torch.zeros(())
    for level in (0.0, 0.03):
        list(TeacherTraining.objective(model, options(input_noise=level)).losses(wave, mel, 0))
    assert torch.equal(read[0][1], wave) and torch.equal(read[1][0], wave)
    decades = (read[1][1] - wave).std(1).log10() - math.log10(0.03)  # uniform from -2 to 0
    assert -2.05 < decades.min() < -1.95 and -0.05 < decades.max() < 0.05 and abs(decades.mean() + 1) < 0.1
    noise = (read[1][1] - wave)[decades > -1]
    assert abs(torch.corrcoef(torch.stack([noise[:, 1:].flatten(), noise[:, :-1].flatten()]))[0, 1]) < 0.02


def test_the_past_that_a_wavenet_reads():
    model, wave, mel = models.WaveNet(TEACHER), 0.1 * torch.randn(2, 160), torch.randn(2, 6, 10)
    past = 0.1 * torch.randn(2, 160)
    expected = -model.distribution.log_prob(model(past, mel), wave, model.config.train_log_scale_min).mean()
    assert torch.equal(model.loss(wave, mel, past=past), expected)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_gaussian_loss_weighted_by_sigma(beta):
    """Seitzer et al. (2022): by the mean, the gradient of a sample is sigma^(2 beta - 2) (mean - x), of log sigma
    sigma^(2 beta) (1 - ((x - mean) / sigma)^2); here of a mean over the samples, weighted."""
    model, wave, mel = models.WaveNet(TEACHER), torch.randn(2, 160), torch.randn(2, 6, 10)
    parameters = torch.randn(2, 2, 160, requires_grad=True)
    model.forward = lambda *_: parameters
    (gradient,) = torch.autograd.grad(model.loss(wave, mel, beta=beta), parameters)
    mean, log_sigma = parameters.detach().double().unbind(1)
    weight, error = (2 * beta * log_sigma).exp(), (wave - mean) * (-log_sigma).exp()
    expected = torch.stack([-weight * error * (-log_sigma).exp(), weight * (1 - error.square())], 1) / weight.sum()
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-8)


def test_a_run_takes_beta(options, tmp_path):
    losses = []
    for beta in (0.0, 0.5):
        loop.run(options(out=tmp_path / str(beta), beta=beta, steps=2), quiet=True)
        losses.append(log_lines(tmp_path / str(beta))[-1]["loss"])
    assert losses[0] != losses[1]
