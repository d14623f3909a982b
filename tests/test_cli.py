"""The ``fastwave`` command: what it writes, what it says, and its exit status."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import test_kan_bayashi
import torch
from golden import Golden

from fastwave import audio, checkpoint, cli, models, vocoder
from fastwave.audio import MelSpec
from fastwave.models import ClariNetStudentConfig, WaveNetConfig

SPEC = MelSpec(sample_rate=8000, n_fft=256, hop_length=64, win_length=256, n_mels=20, fmax=4000.0)
SIZES = {"mel": SPEC, "upsample_scales": (8,), "cond_repeat": 8}
SIZES |= {"residual_channels": 8, "gate_channels": 8, "skip_channels": 8}


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    """The folder of a tiny student with random weights."""
    folder = tmp_path_factory.mktemp("voice")
    torch.manual_seed(0)
    models.ClariNetStudent(ClariNetStudentConfig(flows=((1, 2, 4),), front_width=4, **SIZES)).save(folder)
    return folder


@pytest.fixture
def recording(tmp_path):
    """A WAV file of 1.5 s."""
    path = tmp_path / "in.wav"
    wave = 0.1 * torch.randn(12_000, generator=torch.Generator().manual_seed(0))
    audio.write(path, wave, 8000)
    return path


@pytest.fixture
def run(capsys):
    """Runs the command in this process: (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:  # wrong usage
            status = exit.code
        return status, *capsys.readouterr()

    return run


def assert_error(result: tuple[int, str, str], status: int, *parts: str) -> None:
    """One line on stderr with ``parts`` in it."""
    assert result[0] == status, result
    (line,) = result[2].splitlines()
    assert line.startswith("fastwave: error: ")
    for part in parts:
        assert part in line


# vocode --------------------------------------------------------------------------------------------------------------


def test_vocode_a_recording(run, voice, recording, tmp_path):
    status, out, err = run("vocode", recording, "-o", tmp_path / "out.wav", "--voice", voice, "--seed", 3)
    assert status == 0
    (line,) = out.splitlines()
    assert line.startswith(str(tmp_path / "out.wav"))
    assert "1.50 s of speech" in line and " samples/s, real-time factor " in line
    assert "real-time factor " in err  # the progress bar

    wave, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert rate == 8000
    loaded = vocoder.load(str(voice))
    expected = loaded.generate(loaded.mel(audio.read(recording, 8000)[None]), seed=3)[0]
    np.testing.assert_allclose(wave, expected.clamp(-1, 1), atol=2**-15)


def test_vocode_quietly(run, voice, recording, tmp_path):
    assert run("vocode", recording, "-o", tmp_path / "out.flac", "--voice", voice, "-q") == (0, "", "")
    assert soundfile.info(tmp_path / "out.flac").frames == 188 * 64


def test_vocode_mels_and_recordings_into_a_folder(run, voice, recording, tmp_path):
    mel = audio.log_mel(audio.read(recording, 8000)[None], SPEC)[0]
    np.save(tmp_path / "a.npy", mel.numpy().astype(np.float64))
    spec = {"mel_spec": json.dumps(SPEC.to_dict())}
    safetensors.torch.save_file({"mel": mel}, tmp_path / "b.safetensors", metadata=spec)
    safetensors.torch.save_file({"mel": mel}, tmp_path / "c.safetensors")
    inputs = [recording, *(tmp_path / name for name in ("a.npy", "b.safetensors", "c.safetensors"))]
    assert run("vocode", *inputs, "-o", tmp_path / "new" / "folder", "--voice", voice, "-q") == (0, "", "")
    outputs = sorted((tmp_path / "new" / "folder").iterdir())
    assert [path.name for path in outputs] == ["a.wav", "b.wav", "c.wav", "in.wav"]
    assert len({path.read_bytes() for path in outputs}) == 1


def test_one_input_into_a_folder_that_exists(run, voice, recording, tmp_path):
    (tmp_path / "folder").mkdir()
    assert run("vocode", recording, "-o", tmp_path / "folder", "--voice", voice, "-q")[0] == 0
    assert (tmp_path / "folder" / "in.wav").is_file()


def test_seed_and_temperature(run, voice, recording, tmp_path):
    options = {"a": [], "b": [], "c": ["--seed", 1], "d": ["--temperature", 0.5]}
    for name, changes in options.items():
        assert run("vocode", recording, "-o", tmp_path / f"{name}.wav", "--voice", voice, "-q", *changes)[0] == 0
    a, b, c, d = ((tmp_path / f"{name}.wav").read_bytes() for name in options)
    assert a == b
    assert len({a, c, d}) == 3


def zero_length(path: Path) -> None:
    path.touch()


def no_samples(path: Path) -> None:
    soundfile.write(path, [], 8000, format="WAV")


def junk(path: Path) -> None:
    path.write_bytes(b"junk" * 100)


def infinite(path: Path) -> None:
    soundfile.write(path, [0.1, float("inf")] * 1000, 8000, subtype="FLOAT", format="WAV")


def too_short(path: Path) -> None:
    soundfile.write(path, [0.1] * 100, 8000, format="WAV")


def saved(mel: np.ndarray):
    return lambda path: np.save(path, mel, allow_pickle=True)


def tensors(metadata: dict | None = None, **tensors: torch.Tensor):
    return lambda path: safetensors.torch.save_file(tensors, path, metadata)


NOT_FINITE = np.full((20, 9), np.nan, np.float32)
OTHER_SPEC = {"mel_spec": json.dumps(MelSpec.preset("fastwave").to_dict())}


@pytest.mark.parametrize(
    ("name", "make", "parts"),
    [
        ("missing.wav", lambda path: None, ["inputs must be files that exist, got"]),
        ("folder", Path.mkdir, ["inputs must be files that exist, got"]),
        ("zero.wav", zero_length, ["path must be a readable audio file, got"]),
        ("none.wav", no_samples, ["path must be an audio file with samples, got none in"]),
        ("junk.flac", junk, ["path must be a readable audio file, got"]),
        ("infinite.wav", infinite, ["path must be an audio file of finite samples, got others in"]),
        ("short.wav", too_short, ["wave must be longer than 128 samples"]),
        ("zero.npy", zero_length, ["inputs must be readable files with a mel"]),
        ("junk.npy", junk, ["inputs must be readable files with a mel"]),
        ("pickle.npy", saved(np.array([{}], dtype=object)), ["inputs must be readable files with a mel"]),
        ("bands.npy", saved(np.zeros((80, 9), np.float32)), ["mel must be floats (20, frames), got", "(80, 9)"]),
        ("turned.npy", saved(np.zeros((9, 20), np.float32)), ["mel must be floats (20, frames), got", "(9, 20)"]),
        ("batch.npy", saved(np.zeros((2, 20, 9), np.float32)), ["mel must be floats (20, frames), got", "(2, 20, 9)"]),
        ("integers.npy", saved(np.zeros((20, 9), np.int64)), ["mel must be floats (20, frames), got torch.int64"]),
        ("text.npy", saved(np.array(["a"])), ["inputs must be readable files with a mel"]),
        ("nan.npy", saved(NOT_FINITE), ["mel must be finite, got nan"]),
        ("empty.npy", saved(np.zeros((20, 0), np.float32)), ["mel must"]),
        ("zero.safetensors", zero_length, ["inputs must be readable files with a mel"]),
        ("junk.safetensors", junk, ["inputs must be readable files with a mel"]),
        ("unnamed.safetensors", tensors(x=torch.zeros(20, 9)), ["inputs must be readable files with a mel"]),
        (
            "spec.safetensors",
            tensors(OTHER_SPEC, mel=torch.zeros(20, 9)),
            ["mel must be made with the voice's MelSpec, got one of sample_rate 22050, n_fft 1024, "],
        ),
        (
            "odd.safetensors",
            tensors({"mel_spec": "{"}, mel=torch.zeros(20, 9)),
            ["inputs must be readable files with a mel"],
        ),
    ],
)
def test_bad_input(run, voice, tmp_path, name, make, parts):
    make(tmp_path / name)
    result = run("vocode", tmp_path / name, "-o", tmp_path / "out.wav", "--voice", voice)
    assert_error((*result[:2], last_line(result[2])), 2, name, *parts)
    assert not (tmp_path / "out.wav").exists()


def last_line(text: str) -> str:
    """What follows a progress bar."""
    return text.splitlines()[-1]


def test_no_input_at_all(run, voice, tmp_path):
    assert_error(run("vocode", "-o", tmp_path / "out.wav"), 2, "inputs must be one file or more, got none")


@pytest.mark.parametrize(
    ("output", "status", "part"),
    [
        ("out.mp3", 2, "output must be a .wav or .flac file, got"),
        ("out", 2, "output must be a .wav or .flac file, got"),
        ("no/such/folder/out.wav", 2, "output must be in a folder that exists, got"),
        ("in.wav/out.wav", 2, "output must be in a folder that exists, got"),
    ],
)
def test_bad_output(run, voice, recording, tmp_path, output, status, part):
    """Found before the voice is loaded: that this one is missing is not what the error says."""
    assert_error(run("vocode", recording, "-o", tmp_path / output, "--voice", "nobody"), status, part, output)


def test_a_folder_that_cannot_be_written(run, recording, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")  # root may write anywhere else
    assert_error(run("vocode", recording, "-o", folder / "out.wav", "--voice", "nobody"), 1, str(folder))


def test_bad_outputs_of_several_inputs(run, voice, recording, tmp_path):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "in.flac"
    twin.write_bytes(recording.read_bytes())
    assert_error(run("vocode", recording, twin, "-o", tmp_path / "out"), 2, "inputs must have different names, got")
    twin = twin.rename(tmp_path / "b.flac")
    assert_error(run("vocode", recording, twin, "-o", tmp_path / "out.wav"), 2, "output must be a folder for 2 inputs")
    assert_error(run("vocode", recording, twin, "-o", recording), 2, "output must be a folder for 2 inputs")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04K\x01."),  # a pickle
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
    ids=["config", "pickle", "missing"],
)
def test_a_corrupt_voice(run, voice, recording, tmp_path, damage):
    folder = tmp_path / "voice"
    models.load(voice).save(folder)
    damage(folder)
    assert_error(run("vocode", recording, "-o", tmp_path / "out.wav", "--voice", folder), 2, str(folder))


@pytest.mark.parametrize(
    "options",
    [["--voice", "nobody"], ["--device", "abacus"], ["--threads", "0"], ["--temperature", "-1"], ["--seed", "-1"]],
    ids=lambda options: options[0],
)
def test_bad_options(run, voice, recording, tmp_path, options):
    result = run("vocode", recording, "-o", tmp_path / "out.wav", "--voice", voice, *options)
    assert_error((*result[:2], last_line(result[2])), 2, options[0].strip("-"), options[1])
    assert not (tmp_path / "out.wav").exists()


def test_ctrl_c(run, voice, recording, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(vocoder.Vocoder, "stream", interrupted)
    status, _, err = run("vocode", recording, "-o", tmp_path / "out.wav", "--voice", voice)
    assert (status, last_line(err)) == (1, "fastwave: error: interrupted")
    assert not list(tmp_path.glob("*out*"))


# the other commands --------------------------------------------------------------------------------------------------


def test_train_then_vocode(run, recording, tmp_path):
    config = WaveNetConfig(kernel_size=2, dilations=(1, 2), **SIZES)
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config_to_dict(config)))
    options = ["--data", recording.parent, "--out", tmp_path / "run", "--config", tmp_path / "config.json"]
    assert run("train", "teacher", *options, "--steps", 2, "--frames", 8, "-q") == (0, "", "")
    output = tmp_path / "out.wav"
    assert run("vocode", recording, "-o", output, "--voice", tmp_path / "run" / "model", "-q") == (0, "", "")
    assert soundfile.info(output).frames == 188 * 64


@pytest.mark.parametrize(
    ("options", "status", "part"),
    [
        (["--data", "no/such/folder", "--out", "run"], 2, "data must be a folder, got 'no/such/folder'"),
        (["--data", ".", "--out", "run", "--config", "none.json"], 2, "No such file or directory: none.json"),
        (["--data", ".", "--out", "in.wav"], 1, "File exists: in.wav"),
        (["--data", ".", "--out", "run", "--validation-clips", "x*"], 2, "got 'x*', which matches none"),
    ],
)
def test_bad_training(run, recording, monkeypatch, options, status, part):
    monkeypatch.chdir(recording.parent)
    assert_error(run("train", "student", *options, "-q"), status, part)


def export(folder: Path, name: str, start: str, file: str, hparams: dict | None = None) -> Path:
    """A golden's weights as a checkpoint of the project that they come from, and its hyper-parameters beside it."""
    golden = Golden(name, torch.float32)
    torch.save({"state_dict": golden.state_dict(start)}, folder / file)
    (folder / "hparams.json").write_text(json.dumps(golden.hparams | (hparams or {})))
    return folder / file


def test_convert_then_vocode(run, recording, tmp_path):
    path = export(tmp_path, "r9y9_wavenet_vocoder__gaussian_local", "sd.", "checkpoint.pth", {"sample_rate": 16000})
    folder = tmp_path / "new" / "voice"
    options = ["--source", "r9y9/wavenet_vocoder", "--hparams", tmp_path / "hparams.json"]
    assert run("convert", path, *options, "-o", folder) == (0, f"{folder}: WaveNet with 4,594 parameters\n", "")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert '"sample_rate": 16000' in run("info", folder)[1]
    assert run("vocode", recording, "-o", tmp_path / "out.wav", "--voice", folder, "-q") == (0, "", "")
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.samplerate, info.frames) == (16000, (1 + 24_000 // 15) * 15)


def test_convert_a_student_then_vocode(run, recording, tmp_path):
    name, folder = "ksw0306_ClariNet__student_iaf", tmp_path / "voice"
    teacher = export(tmp_path, name, "sd_teacher.", "teacher_ema.pth")
    path = export(tmp_path, name, "sd.", "student_ema.pth")
    options = ["--source", "ksw0306/ClariNet", "--hparams", tmp_path / "hparams.json"]
    status, out, err = run("convert", path, "--teacher", teacher, *options, "-o", folder)
    assert (status, err) == (0, "") and out.startswith(f"{folder}: ClariNetStudent with ")
    assert run("vocode", recording, "-o", tmp_path / "out.wav", "--voice", folder, "-q") == (0, "", "")
    assert soundfile.info(tmp_path / "out.wav").frames == (1 + 33_075 // 16) * 16

    result = run("convert", path, *options, "-o", tmp_path / "other")
    assert_error(result, 2, "student_ema.pth holds a student, which needs its teacher's upsampler")
    assert not (tmp_path / "other").exists()


def test_convert_warns_of_what_it_leaves_out(run, tmp_path):
    path = tmp_path / "checkpoint.pkl"
    torch.save({"model": {"generator": Golden(test_kan_bayashi.GENERATOR, torch.float32).state_dict()}}, path)
    (tmp_path / "hparams.json").write_text(json.dumps(test_kan_bayashi.CONFIG))
    options = ["--source", "kan-bayashi/ParallelWaveGAN", "--hparams", tmp_path / "hparams.json"]
    status, _, err = run("convert", path, *options, "-o", tmp_path / "voice")
    assert status == 0
    (line,) = err.splitlines()
    assert line.startswith("fastwave: warning: stats are not given: ")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["none.pth"], "no checkpoint at none.pth"),
        (["in.wav"], "in.wav is not a checkpoint, or a damaged one: "),
        (["checkpoint.pth", "--hparams", "none.json"], "no hparams at none.json"),
        (["checkpoint.pth"], "hparams must have stacks: the tensors do not tell it"),
        (["checkpoint.pth", "--stats", "s.npy"], "stats must be absent, as r9y9/wavenet_vocoder has none, got 's.npy'"),
        (["checkpoint.pth", "--teacher", "t"], "teacher must be absent, as r9y9/wavenet_vocoder has none, got 't'"),
    ],
)
def test_bad_conversion(run, recording, monkeypatch, options, part):
    monkeypatch.chdir(recording.parent)
    export(recording.parent, "r9y9_wavenet_vocoder__gaussian_local", "sd.", "checkpoint.pth")
    assert_error(run("convert", *options, "--source", "r9y9/wavenet_vocoder", "-o", "voice"), 2, part)
    assert not Path("voice").exists()


def test_evaluate(run, voice, recording):
    status, out, _ = run("evaluate", voice, "--data", recording.parent)
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    metrics = ["stoi", "pesq", "lsd", "mcd", "f0_rmse", "voicing_error", "samples_per_second", "real_time_factor"]
    assert lines[0] == ["clip", "source_rate", "seconds", *metrics]
    assert lines[1][:3] == ["in", "8000", "1.500"]
    assert lines[3] == ["voice", "source_rate", "clips", *metrics]
    assert lines[4][:3] == [str(voice), "8000", "1"]
    assert lines[5][:3] == ["Griffin-Lim", "8000", "1"]
    assert len(lines) == 6 and len(lines[5]) == len(lines[3])
    assert float(lines[5][3]) > float(lines[4][3]) + 0.2  # STOI: the voice's weights are random


def test_evaluate_an_autoregressive_model(run, recording, tmp_path):
    """It has a likelihood, which Griffin-Lim has not."""
    torch.manual_seed(0)
    models.WaveNet(WaveNetConfig(kernel_size=2, dilations=(1, 2), **SIZES)).save(tmp_path / "voice")
    status, out, _ = run("evaluate", tmp_path / "voice", "--data", recording.parent)
    assert status == 0
    header, model, baseline = out.splitlines()[3:]
    end = header.index("log_likelihood") + len("log_likelihood")
    assert float(model[:end].split()[-1]) < 10
    assert baseline[end - len("log_likelihood") : end].isspace()


def test_info(run, voice):
    status, out, _ = run("info")
    assert status == 0
    assert out.startswith("fastwave ")
    assert "CPU instruction set: " in out and "CUDA: " in out
    for name in vocoder.voices():
        assert f"voice {name}: " in out
        assert run("info", name)[0] == 0
    assert out.count(", also called lj\n") == 1
    assert run("info", "lj")[1] == run("info", vocoder.BEST)[1]
    status, out, _ = run("info", voice)
    assert status == 0
    assert out.startswith(f"{voice}: ClariNetStudent with ")
    assert '"residual_channels": 8' in out
    assert_error(run("info", "nobody"), 2, "nobody")


USAGE = [
    "",
    "sing",
    "convert a.pth -o b",
    "convert a.pth -o b --source nobody",
    "vocode",
    "vocode in.wav",
    "train",
    "train nobody",
    "vocode a.wav -o b.wav --seed x",
]


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage(run, arguments):
    status, out, err = run(*arguments.split())
    assert (status, out) == (2, "")
    assert err and "Traceback" not in err


@pytest.mark.parametrize("arguments", ["--help", "vocode --help", "train teacher --help"])
def test_help(run, arguments):
    status, out, err = run(*arguments.split())
    assert (status, err) == (0, "")
    assert out.startswith("usage: fastwave")


# the examples --------------------------------------------------------------------------------------------------------


def example(name: str):
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    if not path.exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo(recording, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    sizes = SIZES | {"mel": MelSpec.preset("fastwave"), "upsample_scales": (16,), "cond_repeat": 16}
    small = vocoder.Vocoder(models.ClariNetStudent(ClariNetStudentConfig(flows=((1, 2),), **sizes)))
    monkeypatch.chdir(tmp_path)
    make_demo_mel, demo = example("make_demo_mel"), example("demo")
    monkeypatch.setattr(demo.fastwave, "load", lambda name: small)
    arguments = [str(recording), "--transcript", "Printing.", "--out", "demo"]
    monkeypatch.setattr(sys, "argv", ["make_demo_mel.py", *arguments])
    make_demo_mel.main()
    assert json.loads(Path("demo/demo.json").read_text()) == {"clip": "in", "transcript": "Printing."}

    monkeypatch.setattr(demo, "UTTERANCE", Path("demo"))
    monkeypatch.setattr(sys, "argv", ["demo.py", "--input", str(recording)])
    demo.main()
    out = capsys.readouterr().out
    for name in ("demo", "in-vocoded"):
        assert soundfile.info(f"{name}.wav").frames == 130 * 256
        assert Path(f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.wav: " in out
    assert "Printing." in out and "samples/s, real-time factor " in out
    assert Path("demo.wav").read_bytes() == Path("in-vocoded.wav").read_bytes()

    monkeypatch.setattr(sys, "argv", ["demo.py", "--input", "none.wav"])
    with pytest.raises(SystemExit, match=r"demo\.py: error: .*none\.wav"):
        demo.main()


def run_example(monkeypatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    example(name).main()


def test_the_examples_of_converted_models(recording, tmp_path, monkeypatch):
    checkpoint = export(tmp_path, "r9y9_wavenet_vocoder__mixgauss3_local", "sd.", "checkpoint.pth")
    np.save(tmp_path / "feats.npy", np.zeros((9, 10), np.float32))
    hparams, out = tmp_path / "hparams.json", tmp_path / "out.wav"
    run_example(monkeypatch, "r9y9", checkpoint, hparams, tmp_path / "feats.npy", out)
    assert soundfile.info(out).frames == 9 * 16

    student = export(tmp_path, "ksw0306_ClariNet__student_iaf", "sd.", "student.pth")
    teacher = export(tmp_path, "ksw0306_ClariNet__student_iaf", "sd_teacher.", "teacher.pth")
    run_example(monkeypatch, "ksw0306", teacher, recording, out, "--student", student, "--hparams", hparams)
    assert soundfile.info(out).frames == (1 + 33_075 // 16) * 16
    spoken = out.read_bytes()
    hparams.write_text(json.dumps({"num_layers": 3}))
    run_example(monkeypatch, "ksw0306", teacher, recording, out, "--hparams", hparams)
    assert out.read_bytes() != spoken and soundfile.info(out).frames == (1 + 33_075 // 16) * 16


def test_the_module_is_the_command(tmp_path):
    missing = str(tmp_path / "none.wav")
    command = [sys.executable, "-m", "fastwave", "vocode", missing, "-o", "out.wav"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == f"fastwave: error: inputs must be files that exist, got {missing!r}\n"
