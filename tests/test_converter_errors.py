"""convert(): what it refuses, each in one line that names the file, the key or the hyper-parameter."""

import math
import os

import pytest
import safetensors.torch
import torch
from golden import edited
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import SMALL, SMALL_STUDENT, SMALL_TEACHER, SPEAKERS, pair, student, teacher, wavenet
from refusals import assert_refused

import fastwave

R9Y9, KSW0306 = "r9y9/wavenet_vocoder", "ksw0306/ClariNet"


BIAS = "conv_layers__0__conv__bias"
NO_BIAS = edited(wavenet(), **{BIAS: None})
ROWS = "parametrizations__weight__original0"
ACTIVATED = dict(SMALL["upsample_params"], upsample_activation="ReLU")
REFUSED = {
    "source": (
        lambda: fastwave.convert({}, "r9y9"),
        f"source must be one of {', '.join(fastwave.converters.SOURCES)}, got",
    ),
    "empty": (lambda: fastwave.convert({}, R9Y9), "state dict must hold a state dict, got an empty one"),
    "module": (
        lambda: fastwave.convert(torch.nn.Linear(1, 1), R9Y9),
        "state dict must hold a state dict, got a Linear: give its state_dict()",
    ),
    "module-inside": (
        lambda: fastwave.convert({"model": torch.nn.Linear(1, 1)}, "NVIDIA/waveglow"),
        "state dict must hold a state dict, got a Linear: give its state_dict()",
    ),
    "missing": (lambda: fastwave.convert(NO_BIAS, R9Y9, SMALL), "source: missing conv_layers.0.conv.bias"),
    "unexpected": (
        lambda: fastwave.convert(edited(NO_BIAS, step=torch.ones(1)), R9Y9, SMALL),
        "state dict does not have the keys of its source: missing conv_layers.0.conv.bias; unexpected step",
    ),
    "half-a-weight-norm": (
        lambda: fastwave.convert(edited(wavenet(), **{f"first_conv__{ROWS}": None}), R9Y9, SMALL),
        "missing first_conv.weight; unexpected first_conv.parametrizations.weight.original1",
    ),
    "another-project": (
        lambda: fastwave.convert(teacher(), R9Y9, SMALL),
        "missing first_conv.weight, first_conv.bias, conv_layers.0.conv.weight",
    ),
    "many": (lambda: fastwave.convert(teacher(), R9Y9, SMALL), " and 14 more"),
    "layer-in-between": (
        lambda: fastwave.convert({k: v for k, v in wavenet().items() if "layers.0.conv" not in k}, R9Y9, SMALL),
        "missing conv_layers.0.conv.weight",
    ),
    "no-layers": (
        lambda: fastwave.convert({k: v for k, v in wavenet().items() if "conv_layers" not in k}, R9Y9, SMALL),
        "missing conv_layers.0.conv.weight",
    ),
    "no-stages": (
        lambda: fastwave.convert(
            edited(wavenet(upsample_conditional_features=False), upsample_net__conv_in__weight=torch.ones(6, 6, 3)),
            R9Y9,
            {"stacks": 1, "hop_size": 6},
        ),
        "missing upsample_net.upsample.up_layers.1.weight",
    ),
    "no-flows": (
        lambda: fastwave.convert(pair(student=teacher()), KSW0306, {"student": {"num_layers": 2}}),
        "student does not have the keys of its source: missing iafs.0.front_conv.0.conv.weight",
    ),
    "integers": (
        lambda: fastwave.convert(edited(wavenet(), **{BIAS: torch.ones(4).long()}), R9Y9, SMALL),
        "state dict: conv_layers.0.conv.bias must be a tensor of floats, got torch.int64",
    ),
    "no-tensor": (
        lambda: fastwave.convert(edited(wavenet(), **{BIAS: "four"}), R9Y9, SMALL),
        "conv_layers.0.conv.bias must be a tensor of floats, got str",
    ),
    "nan": (
        lambda: fastwave.convert(edited(wavenet(), **{BIAS: torch.full((4,), math.nan)}), R9Y9, SMALL),
        "conv_layers.0.conv.bias must be finite, got NaN or infinity",
    ),
    "infinite-magnitude": (
        lambda: fastwave.convert(
            edited(wavenet(), **{f"first_conv__{ROWS}": torch.full((3, 1, 1), math.inf)}), R9Y9, SMALL
        ),
        "first_conv.parametrizations.weight.original0 must be finite",
    ),
    "magnitude": (
        lambda: fastwave.convert(edited(wavenet(), **{f"first_conv__{ROWS}": torch.ones(2, 1, 1)}), R9Y9, SMALL),
        "first_conv.parametrizations.weight.original0 must be (3, 1, 1), got (2, 1, 1)",
    ),
    "direction": (
        lambda: fastwave.convert(
            edited(wavenet(), first_conv__parametrizations__weight__original1=torch.zeros(3, 1, 1)), R9Y9, SMALL
        ),
        "original1 must have a direction in every row, got a row of zeros",
    ),
    "shape": (
        lambda: fastwave.convert(edited(wavenet(), **{BIAS: torch.ones(5)}), R9Y9, SMALL),
        "state dict: conv_layers.0.conv.bias must be (4,), got (5,)",
    ),
    "halves": (
        lambda: fastwave.convert(
            edited(teacher(), res_blocks__1__gate_conv_c__bias=torch.ones(1)), KSW0306, SMALL_TEACHER
        ),
        "state dict: res_blocks.1.gate_conv_c.bias must be (4,), got (1,)",
    ),
    "too-large-for-float32": (
        lambda: fastwave.convert(edited(wavenet(), **{BIAS: torch.full((4,), 1e39, dtype=torch.double)}), R9Y9, SMALL),
        "conv_layers.0.conv.bias must be finite in float32, got NaN or infinity",
    ),
    "dimensions": (
        lambda: fastwave.convert(
            edited(wavenet(), first_conv__parametrizations__weight__original1=torch.ones(3, 1)), R9Y9, SMALL
        ),
        "state dict: first_conv.weight must be a tensor of 3 dimensions, got (3, 1)",
    ),
    "hparams-type": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"stacks": "1"}),
        "hparams stacks must be of type int, got '1'",
    ),
    "hparams-infinite": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"frame_shift_ms": math.inf}),
        "hparams frame_shift_ms must be finite, got inf",
    ),
    "no-stacks": (lambda: fastwave.convert(wavenet(), R9Y9), "hparams must have stacks: the tensors do not tell it"),
    "stacks": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"stacks": 3}),
        "hparams stacks must divide the 2 layers of the tensors, got 3",
    ),
    "layers": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"layers": 4}),
        "hparams layers must be 2, as in the tensors, got 4",
    ),
    "scales": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"upsample_params": {"upsample_scales": [3, 2]}}),
        "hparams upsample_scales must be [2, 3], as in the tensors, got [3, 2]",
    ),
    "hop": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"hop_size": 256}),
        "hparams hop_size must be 6, the product of the scales, got 256",
    ),
    "no-hop": (
        lambda: fastwave.convert(wavenet(upsample_conditional_features=False), R9Y9, {"stacks": 1}),
        "hparams must have hop_size: the tensors do not tell it",
    ),
    "network": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"upsample_net": "ConvInUpsampleNetwork"}),
        "hparams upsample_net must be UpsampleNetwork, as in the tensors, got ConvInUpsampleNetwork",
    ),
    "activation": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"upsample_params": ACTIVATED}),
        "hparams upsample_activation must be the one that the tensors have room for, with convolutions at 1, 3",
    ),
    "no-activation": (
        lambda: fastwave.convert(wavenet(upsample_params=ACTIVATED), R9Y9, SMALL),
        "with convolutions at 1, 4 of up_layers, got none",
    ),
    "unknown-activation": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"upsample_params": {"upsample_activation": "ELU"}}),
        "hparams upsample_activation must be none or ReLU or LeakyReLU, got ELU",
    ),
    "mode": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"upsample_params": {"mode": "bilinear"}}),
        "hparams mode must be nearest, got bilinear",
    ),
    "mulaw": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"input_type": "mulaw"}),
        "hparams input_type must be raw, as in the tensors, got mulaw",
    ),
    "distribution": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"output_distribution": "Cauchy"}),
        "hparams output_distribution must be Logistic or Normal, got Cauchy",
    ),
    "logistic-pair": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"output_distribution": "Logistic"}),
        "out_channels must be a multiple of 3, or 2 of a Normal, got 2 of a Logistic",
    ),
    "speakers": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"gin_channels": 3}),
        "hparams gin_channels must be -1, as in the tensors, got 3",
    ),
    "speaker-count": (
        lambda: fastwave.convert(wavenet(**SPEAKERS), R9Y9, SMALL | SPEAKERS | {"n_speakers": 5}),
        "hparams n_speakers must be 4, as in the tensors, got 5",
    ),
    "window": (
        lambda: fastwave.convert(wavenet(), R9Y9, SMALL | {"window": "hamming"}),
        "hparams window must be hann, got hamming",
    ),
    "two-for-one": (
        lambda: fastwave.convert({"student": "a.pth", "teacher": "b.pth"}, R9Y9, SMALL),
        "unexpected student, teacher",
    ),
    "block": (
        lambda: fastwave.convert(teacher(), KSW0306),
        "hparams num_layers must divide the 2 layers of the tensors, got 10",
    ),
    "blocks": (
        lambda: fastwave.convert(teacher(), KSW0306, {"num_layers": 1, "num_blocks": 1}),
        "hparams num_blocks must be 2, as in the tensors, got 1",
    ),
    "outputs": (
        lambda: fastwave.convert(teacher(out_channels=3), KSW0306, {"num_layers": 2}),
        "out_channels must be 2, a Gaussian's, got 3 in the tensors",
    ),
    "odd-scale": (
        lambda: fastwave.convert(teacher(upsample_scales=[3]), KSW0306, {"num_layers": 2}),
        "upsample_scales must be even, got [3] in the tensors",
    ),
    "not-causal": (
        lambda: fastwave.convert(teacher(), KSW0306, SMALL_TEACHER | {"causal": False}),
        "hparams causal must be True, as in the tensors, got False",
    ),
    "student-alone": (
        lambda: fastwave.convert(student(), KSW0306, SMALL_STUDENT),
        'state dict holds a student, which needs its teacher\'s upsampler: convert {"student": ..., "teacher": ...}',
    ),
    "flat-hparams-of-two": (
        lambda: fastwave.convert(pair(), KSW0306, {"num_layers": 2}),
        "hparams of a student must be under student and teacher, got num_layers",
    ),
    "blocks-of-a-student": (
        lambda: fastwave.convert(pair(), KSW0306, {"student": {"num_layers": 2, "num_blocks_student": [1, 1]}}),
        "hparams num_blocks_student must be [1, 2], as in the tensors, got [1, 1]",
    ),
    "section": (
        lambda: fastwave.convert(pair(), KSW0306, {"student": 2}),
        "hparams student must be of type dict, got 2",
    ),
    "no-upsampler": (
        lambda: fastwave.convert(pair(teacher=student()), KSW0306, {"student": {"num_layers": 2}}),
        "teacher does not have the keys of its source: missing upsample_conv.0.weight, upsample_conv.0.bias",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    assert_refused(*REFUSED[name])


class Payload:
    """A pickle that would call os.system."""

    def __reduce__(self):
        return os.system, ("exit 3",)


def with_more(path):
    torch.save({"state_dict": wavenet(), "hparams": Payload()}, path)


def whole_module(path):
    torch.save({"model": torch.nn.Linear(1, 1)}, path)


def truncated(path):
    torch.save({"state_dict": wavenet()}, path)
    path.write_bytes(path.read_bytes()[:-100])


def truncated_in_the_old_format(path):
    torch.save({"state_dict": wavenet()}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


def text(path):
    path.write_text("state_dict")


def nothing(path):
    path.touch()


def a_list(path):
    torch.save([torch.ones(1)], path)


def a_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            with_more,
            r"holds a \w+\.system, and only tensors and plain values are .*made, torch\.save\(\{.state_dict.: model\.",
        ),
        (
            whole_module,
            r"holds a torch\.nn\.modules\.linear\.Linear, and only tensors and plain values are read from a ",
        ),
        (truncated, "is not a checkpoint, or a damaged one: "),
        (truncated_in_the_old_format, "is not a checkpoint, or a damaged one: "),
        (text, "is not a checkpoint, or a damaged one: "),
        (nothing, "is not a checkpoint, or a damaged one: "),
        (a_list, "must hold a state dict, got list"),
        (a_folder, "checkpoint must be a file, got "),
    ],
)
def test_a_bad_file(make, message, tmp_path):
    make(tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=message) as error:
        fastwave.convert(tmp_path / "bad.pth", R9Y9, SMALL)
    assert "\n" not in str(error.value) and str(tmp_path / "bad.pth") in str(error.value)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(zipped=st.booleans(), where=st.floats(0, 1, exclude_max=True), bits=st.integers(0, 255))
def test_any_damage_is_an_error_of_one_line(zipped, where, bits, tmp_path_factory):
    """A file that is cut off (no bits), or that has some bits turned around, unless it is a checkpoint still."""
    path = tmp_path_factory.mktemp("damaged") / "bad.pth"
    torch.save({"state_dict": wavenet()}, path, _use_new_zipfile_serialization=zipped)
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    if bits:
        data[at] ^= bits
    else:
        del data[at:]
    path.write_bytes(data)
    try:
        fastwave.convert(path, R9Y9, SMALL)
    except ValueError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert bits


def test_a_damaged_safetensors_file(tmp_path):
    safetensors.torch.save_file(wavenet(), tmp_path / "bad.safetensors")
    whole = (tmp_path / "bad.safetensors").read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a checkpoint, or a damaged one: "):
        fastwave.convert(tmp_path / "bad.safetensors", R9Y9, SMALL)


def test_a_tensor_of_a_bad_file_is_named_with_it(tmp_path):
    torch.save(edited(wavenet(), **{BIAS: torch.ones(5)}), tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"/bad\.pth: conv_layers\.0\.conv\.bias must be \(4,\), got \(5,\)"):
        fastwave.convert(tmp_path / "bad.pth", R9Y9, SMALL)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*/none\.pth"):
        fastwave.convert(tmp_path / "none.pth", R9Y9, SMALL)
    with pytest.raises(FileNotFoundError, match=r"no hparams at .*/none\.json"):
        fastwave.convert(wavenet(), R9Y9, tmp_path / "none.json")


@pytest.mark.parametrize(("text", "message"), [("{", "must be a JSON object: "), ("[1]", "must be a JSON object, got")])
def test_bad_hparams(text, message, tmp_path):
    (tmp_path / "hparams.json").write_text(text)
    with pytest.raises(ValueError, match=rf"hparams\.json {message}"):
        fastwave.convert(wavenet(), R9Y9, tmp_path / "hparams.json")
