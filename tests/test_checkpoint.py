import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastwave import checkpoint, models
from fastwave.audio import MelSpec
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet, WaveNetConfig

MEL = MelSpec(
    sample_rate=8000, n_fft=64, hop_length=6, win_length=64, n_mels=3, fmax=4000.0, mean=(0.0,) * 3, std=(1.0,) * 3
)
TEACHER = WaveNetConfig(
    mel=MEL,
    residual_channels=4,
    gate_channels=5,
    skip_channels=6,
    kernel_size=2,
    dilations=(1, 2),
    upsample_scales=(2, 3),
)
STUDENT = ClariNetStudentConfig(
    mel=MEL,
    flows=[(1, 2), (1,)],
    front_width=3,
    residual_channels=4,
    upsample_scales=(),
    upsampler="nearest",
    cond_repeat=6,
)
CONFIGS = [
    TEACHER,
    dataclasses.replace(TEACHER, distribution="softmax", classes=8, one_hot_input=True, initial_class=0),
    dataclasses.replace(
        TEACHER, upsampler="stretched", upsample_context=1, upsample_context_conv=True, speakers=2, speaker_channels=3
    ),
    STUDENT,
]


def make(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (WaveNet if isinstance(config, WaveNetConfig) else ClariNetStudent)(config)


@pytest.fixture
def folder(tmp_path):
    """A saved WaveNet."""
    make(TEACHER).save(tmp_path / "voice")
    return tmp_path / "voice"


def edit_config(folder, edit):
    path = folder / "config.json"
    description = json.loads(path.read_text())
    edit(description)
    path.write_text(json.dumps(description))


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    edit(tensors)
    safetensors.torch.save_file(tensors, path)


# round trip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_is_exact(config, tmp_path):
    model = make(config)
    model.save(tmp_path / "a" / "voice")
    assert sorted(os.listdir(tmp_path / "a" / "voice")) == ["config.json", "model.safetensors"]
    loaded = models.load(str(tmp_path / "a" / "voice"))
    assert type(loaded) is type(model) and loaded.config == config and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_loaded_model_generates_the_same(folder):
    mel = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(models.load(folder).generate(mel, seed=1), make(TEACHER).generate(mel, seed=1))


def test_saving_again_replaces(folder):
    other = make(dataclasses.replace(TEACHER, dilations=(1, 2, 4)))
    other.save(folder)
    assert models.load(folder).config.dilations == (1, 2, 4)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_any_float_becomes_float32(folder):
    rounded = {name: tensor.bfloat16() for name, tensor in make(TEACHER).state_dict().items()}
    edit_tensors(folder, lambda tensors: tensors.update(rounded))
    for name, tensor in models.load(folder).state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, rounded[name].float())


def test_a_failing_write_leaves_the_old_file(folder, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make(STUDENT).save(folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


@pytest.mark.parametrize("config", [*CONFIGS, WaveNetConfig.clarinet(), ClariNetStudentConfig.student_2()])
def test_config_through_json(config):
    text = json.dumps(checkpoint.config_to_dict(config))
    assert checkpoint.config_from_dict(type(config), json.loads(text)) == config


# what is refused -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested:
    mel: MelSpec | None = None
    name: str = "x"


def test_optional_nested_config():
    for value in (Nested(), Nested(mel=MEL)):
        assert checkpoint.config_from_dict(Nested, checkpoint.config_to_dict(value)) == value
    with pytest.raises(ValueError, match="Nested has no field size; it has mel, name"):
        checkpoint.config_from_dict(Nested, {"size": 1})
    with pytest.raises(ValueError, match="Nested must be a JSON object, got list"):
        checkpoint.config_from_dict(Nested, [])


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda d: d["config"].update(widht=1), "WaveNetConfig has no field widht; it has mel, upsampler,"),
        (lambda d: d["config"]["mel"].update(hop=1), "MelSpec has no field hop; it has sample_rate,"),
        (lambda d: d["config"].pop("kernel_size"), "WaveNetConfig in config.json is incomplete or malformed: "),
        (lambda d: d["config"].update(kernel_size="2"), "WaveNetConfig in config.json is incomplete or malformed: "),
        (lambda d: d["config"].update(kernel_size=0), "kernel_size must be at least 1, got 0"),
        (lambda d: d["config"].update(mel=3), "MelSpec must be a JSON object, got int"),
        (lambda d: d.update(config=[]), "WaveNetConfig must be a JSON object, got list"),
        (lambda d: d.update(model="HiFiGAN"), "{folder} holds a 'HiFiGAN'; known models are WaveNet, ClariNetStudent"),
        (lambda d: d.pop("model"), "{folder}/config.json is not a fastwave configuration: KeyError('model')"),
        (lambda d: d.pop("config"), "{folder}/config.json is not a fastwave configuration: KeyError('config')"),
    ],
)
def test_bad_config(folder, edit, message):
    edit_config(folder, edit)
    with pytest.raises(ValueError) as error:
        models.load(folder)
    expected = message.format(folder=folder).split("known models are ")
    assert str(error.value).startswith(expected[0])
    assert len(expected) == 1 or "WaveNet" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"'])
def test_config_that_is_no_description(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is not a fastwave configuration: "):
        models.load(folder)


def pickled(path: Path) -> None:
    torch.save(make(TEACHER).state_dict(), path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "spoil",
    [
        pickled,
        truncated,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x00" * 100),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    ],
    ids=["pickle", "truncated", "empty", "zeros", "ones", "text"],
)
def test_weights_that_are_no_safetensors(folder, spoil):
    spoil(folder / "model.safetensors")
    with pytest.raises(ValueError) as error:
        models.load(folder)
    assert str(error.value).startswith(
        f"{folder}/model.safetensors is not a safetensors file (a pickle is never read): "
    )


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop("stack.front.bias"), 'does not fit its configuration: .*Missing key.*"stack.front.bias"'),
        (lambda t: t.update(extra=torch.zeros(1)), 'does not fit its configuration: .*Unexpected key.*"extra"'),
        (
            lambda t: t.update({"stack.front.bias": torch.zeros(5)}),
            "does not fit its configuration: .*size mismatch for stack.front.bias",
        ),
        (lambda t: t["stack.front.bias"].fill_(math.nan), "has non-finite values in stack.front.bias"),
        (lambda t: t["stack.conv.1.weight"][0, 0].fill_(math.inf), "has non-finite values in stack.conv.1.weight"),
    ],
    ids=["missing", "unknown", "shape", "nan", "inf"],
)
def test_bad_tensors(folder, edit, message):
    edit_tensors(folder, edit)
    with pytest.raises(ValueError, match=message) as error:
        models.load(folder)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


def test_missing_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^no model folder at {tmp_path}/none$"):
        models.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=f"^no model folder at {folder}/config.json$"):
        models.load(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"^{folder} has no model.safetensors$"):
        models.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"^{folder} has no config.json$"):
        models.load(folder)


def test_a_folder_that_cannot_be_made(folder):
    with pytest.raises(OSError):
        make(TEACHER).save(folder / "config.json" / "voice")
