"""convert() of kan-bayashi/ParallelWaveGAN: files, hyper-parameters, refusals; test_parallel_wavegan.py has goldens."""

import json
import sys

import numpy as np
import pytest
import torch
from golden import Golden
from refusals import assert_refused

import fastwave
from fastwave import cli, models
from fastwave.audio import MelSpec

NAME = "kan-bayashi/ParallelWaveGAN"
GENERATOR, CAUSAL = "kan-bayashi__pwg_generator", "kan-bayashi__pwg_generator_causal"

CONFIG = {
    "sampling_rate": 24000,
    "fft_size": 2048,
    "hop_size": 24,
    "win_length": None,
    "window": "hann",
    "num_mels": 10,
    "fmin": None,
    "fmax": 7600,
    "generator_type": "ParallelWaveGANGenerator",
    "generator_params": {"stacks": 2, "aux_context_window": 2, "upsample_params": {"upsample_scales": [4, 3, 2]}},
}
STATS = {"mean": np.arange(10.0), "scale": np.arange(10.0) + 1}


def convert(config=CONFIG, stats=STATS, name=GENERATOR, **changes):
    """A golden's generator with other tensors; ``__`` in their names stands for a dot, and None leaves one out."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    tensors = Golden(name, torch.float32).state_dict() | changes
    tensors = {key: value for key, value in tensors.items() if value is not None}
    return fastwave.convert({"generator": tensors, "stats": stats}, NAME, config)


def params(**changes):
    return CONFIG | {"generator_params": CONFIG["generator_params"] | changes}


def test_front_end():
    spec = convert().config.mel
    assert spec == MelSpec(
        sample_rate=24000,
        n_fft=2048,
        hop_length=24,
        win_length=2048,
        n_mels=10,
        fmin=0.0,
        fmax=7600.0,
        log="log10",
        floor=1e-10,
        log_range=None,
        mean=tuple(STATS["mean"]),
        std=tuple(STATS["scale"]),
    )


def test_the_activation_of_the_upsampler_is_kept():
    activated = params(upsample_params={"nonlinear_activation": "LeakyReLU"})
    net = "upsample_net.upsample.up_layers."
    places = {f"{net}{2 * i + 1}.weight_{part}": f"{net}{3 * i + 1}.weight_{part}" for i in range(3) for part in "gv"}
    tensors = {places.get(key, key): value for key, value in Golden(GENERATOR, torch.float32).state_dict().items()}
    model = fastwave.convert({"generator": tensors, "stats": STATS}, NAME, activated)
    assert model.config.upsample_slope == 0.01


def test_files(tmp_path):
    """A checkpoint of torch.save, config.yml, and stats.npy or stats.h5."""
    yaml = pytest.importorskip("yaml")
    golden = Golden(GENERATOR, torch.float32)
    torch.save({"model": {"generator": golden.state_dict()}, "steps": 3}, tmp_path / "checkpoint-3steps.pkl")
    (tmp_path / "config.yml").write_text(yaml.dump(CONFIG))
    np.save(tmp_path / "stats.npy", np.stack([STATS["mean"], STATS["scale"]]).astype(np.float32))
    files = {"generator": tmp_path / "checkpoint-3steps.pkl", "stats": tmp_path / "stats.npy"}
    model = fastwave.convert(files, NAME, tmp_path / "config.yml")
    assert model.config == convert().config
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "stats.h5", "w") as file:
        file["mean"], file["scale"] = STATS["mean"], STATS["scale"]
    assert fastwave.convert(files | {"stats": tmp_path / "stats.h5"}, NAME, CONFIG).config == model.config


def test_warnings():
    tensors = Golden(GENERATOR, torch.float32).state_dict()
    with pytest.warns(UserWarning, match="stats are not given: mels must be normalised by the statistics") as caught:
        assert fastwave.convert(tensors, NAME, CONFIG).config.mel.mean is None
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="global_gain_scale is not applied: "):
        convert(CONFIG | {"global_gain_scale": 0.55})


MISSING = {"upsample_net__conv_in__weight_g": None, "upsample_net__conv_in__weight_v": None}
REFUSED = {
    "missing": (lambda: convert(**MISSING), "its source: missing upsample_net.conv_in.weight"),
    "unexpected": (lambda: convert(pqmf=torch.ones(1)), "unexpected pqmf"),
    "shape": (lambda: convert(first_conv__bias=torch.ones(3)), "first_conv.bias must be (12,), got (3,)"),
    "inputs": (
        lambda: convert(first_conv__weight_v=torch.ones(12, 4, 1)),
        "first_conv.weight_v must be (12, 1, 1), got (12, 4, 1)",
    ),
    "no-stacks": (lambda: convert({}), "hparams must have stacks: the tensors do not tell it"),
    "stacks": (lambda: convert(params(stacks=4)), "hparams stacks must divide the 6 layers of the tensors, got 4"),
    "gates": (lambda: convert(params(gate_channels=10)), "hparams gate_channels must be 20, as in the tensors, got 10"),
    "hop": (lambda: convert(CONFIG | {"hop_size": 256}), "hparams hop_size must be 24, as in the tensors, got 256"),
    "bands": (lambda: convert(params(aux_channels=80)), "hparams aux_channels must be 10, as in the tensors, got 80"),
    "context": (
        lambda: convert(params(use_causal_conv=True)),
        "hparams aux_context_window must be 4, as in the tensors, got 2",
    ),
    "causal": (
        lambda: convert(params(upsample_params={}), name=CAUSAL, upsample_net__conv_in__weight_v=torch.ones(7, 7, 2)),
        "hparams use_causal_conv must be True, as in the tensors, whose conv_in has 2 taps",
    ),
    "network": (
        lambda: convert(params(upsample_net="MelGANGenerator")),
        "hparams upsample_net must be ConvInUpsampleNetwork, as in the tensors, got MelGANGenerator",
    ),
    "activation": (
        lambda: convert(params(upsample_params={"nonlinear_activation": "ReLU"})),
        "hparams nonlinear_activation must be the one that the tensors have room for, with convolutions at 1, 3, 5",
    ),
    "generator": (
        lambda: convert(CONFIG | {"generator_type": "HiFiGANGenerator"}),
        "hparams generator_type must be ParallelWaveGANGenerator, got HiFiGANGenerator",
    ),
    "logarithm": (lambda: convert(CONFIG | {"log_base": 2.0}), "hparams log_base must be 10, got 2.0"),
    "window": (lambda: convert(CONFIG | {"window": "hamming"}), "hparams window must be hann, got hamming"),
    "stats-keys": (lambda: convert(stats={"mean": STATS["mean"]}), "stats must have mean and scale: KeyError('scale')"),
    "stats-bands": (
        lambda: convert(stats={"mean": np.ones(80), "scale": np.ones(80)}),
        "stats: mean must be 10 finite numbers, one per band, got (80,)",
    ),
    "stats-nan": (
        lambda: convert(stats=STATS | {"scale": np.full(10, np.nan)}),
        "stats: scale must be 10 finite numbers, one per band, got NaN or infinity",
    ),
    "stats-zero": (lambda: convert(stats=STATS | {"scale": np.zeros(10)}), "std must be above 0 in every band, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    assert_refused(*REFUSED[name])


def test_refused_files(tmp_path, monkeypatch):
    assert_refused(lambda: convert(stats="none.npy"), "no stats at none.npy", FileNotFoundError)
    np.save(tmp_path / "stats.npy", np.ones(3))
    assert_refused(lambda: convert(stats=tmp_path / "stats.npy"), "stats.npy must be an array (2, bands)")
    (tmp_path / "stats.npy").write_bytes(b"nothing of the kind")
    assert_refused(lambda: convert(stats=tmp_path / "stats.npy"), "stats.npy must be an array (2, bands)")
    (tmp_path / "stats.h5").touch()
    (tmp_path / "config.yml").touch()
    for module, call in (
        ("h5py", lambda: convert(stats=tmp_path / "stats.h5")),
        ("yaml", lambda: convert(tmp_path / "config.yml")),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        assert_refused(call, "is not installed; pip install 'fastwave[convert]' installs it", ModuleNotFoundError)


@pytest.mark.parametrize(
    "text, message",
    [("a: [", "must be a YAML mapping of plain values: "), ("- a", "must be a YAML mapping, got list")],
)
def test_refused_yaml(tmp_path, text, message):
    pytest.importorskip("yaml")
    (tmp_path / "config.yml").write_text(text)
    assert_refused(lambda: convert(tmp_path / "config.yml"), message)


def test_refused_hdf5(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "stats.h5").write_bytes(b"nothing of the kind")
    assert_refused(lambda: convert(stats=tmp_path / "stats.h5"), "stats.h5 must be an HDF5 file with mean and scale")


def test_command(tmp_path, capsys):
    torch.save({"model": {"generator": Golden(GENERATOR, torch.float32).state_dict()}}, tmp_path / "checkpoint.pkl")
    np.save(tmp_path / "stats.npy", np.stack([STATS["mean"], STATS["scale"]]))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    options = ["--source", NAME, "--hparams", str(tmp_path / "config.json"), "-o", str(tmp_path / "voice")]
    options = ["convert", str(tmp_path / "checkpoint.pkl"), *options]
    assert cli.main([*options, "--stats", str(tmp_path / "stats.npy")]) == 0
    assert models.load(tmp_path / "voice").config == convert().config
    assert capsys.readouterr().err == ""
    assert cli.main(options) == 0
    assert capsys.readouterr().err.startswith("fastwave: warning: stats are not given: mels must be normalised by ")
