"""convert(): each golden of a public implementation, and what checkpoints look like in the wild."""

import collections
import json
import math
import re

import peers
import pytest
import safetensors.torch
import torch
from golden import Golden, assert_same, everywhere, run_stack, run_upsampler
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import SMALL, SPEAKERS

import fastwave
from fastwave import models
from fastwave.audio import MelSpec
from fastwave.emphasis import Emphasis
from fastwave.ops.wavenet_sample import initial_sampler_state, wavenet_sample, wavenet_sample_ref
from fastwave.pack import pack_gated_stack

R9Y9, KSW0306 = "r9y9/wavenet_vocoder", "ksw0306/ClariNet"
TEACHER = "ksw0306_ClariNet__teacher_gaussian"
STUDENT = "ksw0306_ClariNet__student_iaf"
VOCODERS = ["gaussian_local", "mixgauss3_local", "mol10_local", "mol10_local_global", "mulaw256_local"]
WAVENETS = [TEACHER, *(f"r9y9_wavenet_vocoder__{name}" for name in VOCODERS)]


def source(name):
    return KSW0306 if name.startswith("ksw0306") else R9Y9


def converted(name, dtype=torch.float32):
    """A golden, and its model, which convert() makes in float32."""
    golden = Golden(name, dtype)
    if name == STUDENT:
        checkpoint = {"student": golden.state_dict(), "teacher": golden.state_dict("sd_teacher.")}
    else:
        checkpoint = golden.state_dict()
    return golden, fastwave.convert(checkpoint, source(name), golden.hparams).to(dtype).requires_grad_(False)


# goldens -------------------------------------------------------------------------------------------------------------


def run_sampler(model, noise, kernels, **named):
    spec, head, weights = model.stack.spec, model.config.head_spec(), model.stack.weights()
    named["state"] = initial_sampler_state(spec, len(noise), model.first_input(), dtype=noise.dtype)
    if head.distribution == "softmax":
        named["table"] = model.distribution.decode_table().to(noise)
    assert noise.shape[1] == head.noise_channels(spec.out_channels) == len(model.noise_kinds)
    if kernels:
        return wavenet_sample(noise, pack_gated_stack(weights, spec), spec, head, return_parameters=True, **named)
    return wavenet_sample_ref(noise, weights, spec, head, **named)


@everywhere
@pytest.mark.parametrize("name", WAVENETS)
def test_teacher_forced(name, dtype, kernels):
    """The peers' column t reads x[t] and is the distribution of x[t + 1]."""
    golden, model = converted(name, dtype)
    if "in.x_index" in golden:
        wave = model.distribution.decode_table().to(dtype)[golden["in.x_index"]]
        assert torch.equal(model.encode(wave).argmax(1), golden["in.x_index"])
    else:
        wave = golden["in.x"][:, 0]
    g = model.global_vectors(golden["in.g"]) if "in.g" in golden else None
    c = run_upsampler(model.upsampler, golden["in.c"], kernels)
    parameters = run_stack(model.stack, model.encode(wave).contiguous(), kernels, c=c, g=g)
    golden.check(c, "c_up")
    golden.check(model.upsampler(golden["in.c"]), "c_up")
    golden.check(parameters, "forward")
    log_prob = model.distribution.log_prob(parameters[..., :-1], wave[:, 1:], model.config.train_log_scale_min)
    golden.check(-log_prob if name == TEACHER else -log_prob[..., None], "nll")
    golden.check(-log_prob.mean(), "loss")
    if "out.forward_softmax" in golden:
        golden.check(parameters.softmax(1)[..., -8:], "forward_softmax")


@everywhere
@pytest.mark.parametrize("name", WAVENETS)
def test_sampled(name, dtype, kernels):
    """From the recorded noise, and noise-free; the peers sampled from the first frames alone."""
    golden, model = converted(name, dtype)
    noise = golden.noise()
    batch, _, samples = noise.shape
    frames = samples // model.config.mel.hop_length + 2 * model.upsampler.spec.context
    c = run_upsampler(model.upsampler, golden["in.c"][:batch, :, :frames].contiguous(), kernels)
    g = model.global_vectors(golden["in.g"][:batch]) if "in.g" in golden else None
    for path, temperature in (("ar", 1.0), ("ar_mean", 0.0)):
        wave, parameters = run_sampler(model, noise, kernels, c=c, g=g, temperature=temperature)
        if f"out.{path}_index" in golden:
            assert torch.equal(wave, model.distribution.decode_table().to(dtype)[golden[f"out.{path}_index"]])
        else:
            golden.check(wave[:, None], path)
        if f"out.{path}_params" in golden:
            golden.check(parameters, f"{path}_params")


@pytest.mark.parametrize("name", [TEACHER, "r9y9_wavenet_vocoder__gaussian_local"])
def test_generate(name):
    """Where the upsampler eats no context, the model and Vocoder answer the peer's call themselves."""
    golden, model = converted(name)
    noise = golden.noise()
    mel = golden["in.c"][: len(noise), :, : noise.shape[2] // model.config.mel.hop_length]
    for path, temperature in (("ar", 1.0), ("ar_mean", 0.0)):
        for generate in (model.generate, fastwave.Vocoder(model).generate):
            golden.check(generate(mel, noise=noise, temperature=temperature)[:, None], path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_student(dtype):
    golden, model = converted(STUDENT, dtype)
    golden.check(model.upsampler(golden["in.c"]), "c_up")
    x, mu, log_sigma = model(golden["in.z"][:, 0], golden["in.c"])
    golden.check(x[:, None], "x_student")
    golden.check(mu[:, None, 1:], "mu_tot")  # the peer has none for the first sample, which is 0
    golden.check(log_sigma[:, None, 1:], "logs_tot")
    golden.check(model.generate(golden["in.c"], noise=golden["in.z"])[:, None], "generate")
    if dtype == torch.float32:
        golden.check(fastwave.Vocoder(model).generate(golden["in.c"], noise=golden["in.z"])[:, None], "generate")


@everywhere
def test_the_students_teacher(dtype, kernels):
    golden = Golden(STUDENT, dtype)
    teacher = fastwave.convert(golden.state_dict("sd_teacher."), KSW0306, golden.hparams["teacher"])
    teacher.to(dtype).requires_grad_(False)
    c = run_upsampler(teacher.upsampler, golden["in.c"], kernels)
    golden.check(run_stack(teacher.stack, golden["out.x_student"], kernels, c=c), "teacher_params")


# checkpoints in the wild ---------------------------------------------------------------------------------------------

MIXTURE = "r9y9_wavenet_vocoder__mixgauss3_local"


def parametrized(tensors):
    kinds = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    return {re.sub(r"weight_[gv]$", lambda found: kinds[found[0]], key): value for key, value in tensors.items()}


def folded(tensors):
    out = {key: value for key, value in tensors.items() if not key.endswith(("weight_g", "weight_v"))}
    for key, v in tensors.items():
        if key.endswith("weight_v"):
            out[key[:-2]] = torch._weight_norm(v, tensors[f"{key[:-1]}g"], 0)
    return out


FORMS = {
    "bare": dict,
    "state_dict": lambda tensors: {"state_dict": tensors, "optimizer": {"state": {}}, "global_step": 3},
    "data-parallel": lambda tensors: {"state_dict": {f"module.{key}": value for key, value in tensors.items()}},
    "parametrized": parametrized,
    "folded": lambda tensors: collections.OrderedDict(folded(tensors)),
    "parameters": lambda tensors: {key: torch.nn.Parameter(value) for key, value in tensors.items()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [TEACHER, MIXTURE])
def test_forms_of_a_checkpoint(name, form, tmp_path):
    golden, model = converted(name)
    given = FORMS[form](golden.state_dict())
    torch.save(given, tmp_path / "checkpoint_step000000001_ema.pth")
    for checkpoint in (given, tmp_path / "checkpoint_step000000001_ema.pth"):
        rounding = 2**-22 if form == "folded" else 0
        assert_same(fastwave.convert(checkpoint, source(name), golden.hparams), model, atol=rounding)


def test_forms_of_a_file(tmp_path):
    golden, model = converted(MIXTURE)
    tensors = golden.state_dict()
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(tensors, tmp_path / "new.safetensors")
    (tmp_path / "hparams.json").write_text(json.dumps(golden.hparams))
    for name in ("old.pth", "new.safetensors"):
        assert_same(fastwave.convert(str(tmp_path / name), R9Y9, tmp_path / "hparams.json"), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width(dtype):
    golden, _ = converted(TEACHER)
    model = fastwave.convert({k: v.to(dtype) for k, v in golden.state_dict().items()}, KSW0306, golden.hparams)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_nothing_of_the_checkpoint_is_shared_or_changed():
    golden = Golden(MIXTURE, torch.float32)
    tensors = folded(golden.state_dict())
    before = {key: value.clone() for key, value in tensors.items()}
    model = fastwave.convert(tensors, R9Y9, golden.hparams)
    assert not model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensors[key], value) for key, value in before.items())


def test_converting_draws_no_random_numbers():
    golden = Golden(STUDENT, torch.float32)
    checkpoint = {"student": golden.state_dict(), "teacher": golden.state_dict("sd_teacher.")}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fastwave.convert(checkpoint, KSW0306, golden.hparams)
    assert torch.equal(torch.rand(3), expected)


# hyper-parameters ----------------------------------------------------------------------------------------------------


def test_the_tensors_tell_the_sizes():
    golden, model = converted(MIXTURE)
    few = {"stacks": 2, "output_distribution": "Normal", "log_scale_min": -16.0}
    assert_same(fastwave.convert(golden.state_dict(), R9Y9, few), model)
    golden, model = converted("r9y9_wavenet_vocoder__mulaw256_local")
    assert_same(fastwave.convert(golden.state_dict(), R9Y9, {"stacks": 3}), model)
    golden, model = converted(TEACHER)
    assert_same(fastwave.convert(golden.state_dict(), KSW0306, {"num_layers": 3}), model)


# egs/mol/conf/mol_wavenet.json of r9y9/wavenet_vocoder, as far as a converter reads it, at sizes of a test
FLAT = {
    "name": "wavenet_vocoder",
    "input_type": "raw",
    "quantize_channels": 65536,
    "sample_rate": 16000,
    "num_mels": 10,
    "fmin": 55,
    "fmax": 7000,
    "fft_size": 512,
    "hop_size": 16,
    "frame_shift_ms": None,
    "win_length": 400,
    "win_length_ms": -1.0,
    "window": "hann",
    "output_distribution": "Logistic",
    "log_scale_min": -12.0,
    "out_channels": 30,
    "layers": 6,
    "stacks": 2,
    "residual_channels": 16,
    "gate_channels": 24,
    "skip_out_channels": 12,
    "kernel_size": 3,
    "cin_channels": 10,
    "cin_pad": 2,
    "upsample_conditional_features": True,
    "upsample_net": "ConvInUpsampleNetwork",
    "upsample_params": {"upsample_scales": [4, 4]},
    "gin_channels": -1,
    "n_speakers": 7,
    "optimizer": "Adam",
}


def test_the_flat_form_of_the_hyper_parameters():
    golden = Golden("r9y9_wavenet_vocoder__mol10_local", torch.float32)
    config = fastwave.convert(golden.state_dict(), R9Y9, FLAT).config
    assert config.distribution == "mixture_of_logistics" and config.components == 10
    assert config.train_log_scale_min == -12.0
    assert config.mel == MelSpec(
        sample_rate=16000,
        n_fft=512,
        hop_length=16,
        win_length=400,
        n_mels=10,
        fmin=55.0,
        fmax=7000.0,
        log="log10",
        floor=1e-10,
        log_range=None,
    )
    in_milliseconds = FLAT | {"hop_size": None, "frame_shift_ms": 1.0, "win_length": -1, "win_length_ms": 25.0}
    statistics = {"mel_mean": [0.5] * 10, "mel_std": [2.0] * 10}
    mel = fastwave.convert(golden.state_dict(), R9Y9, in_milliseconds | statistics).config.mel
    assert (mel.hop_length, mel.win_length) == (16, 400)
    assert (mel.mean, mel.std) == ((0.5,) * 10, (2.0,) * 10)


def test_what_follows_the_model_is_applied():
    given = {"postprocess": "inv_preemphasis", "global_gain_scale": 0.55}
    peer, mel = peers.wavenet(), torch.rand(2, 6, 4)
    plain, emphasised = (fastwave.convert(peer, R9Y9, SMALL | more).eval() for more in ({}, given))
    assert emphasised.config.emphasis == Emphasis(coefficient=0.85, gain=0.55)
    expected = plain.generate(mel).double() / 0.55
    for t in range(1, expected.shape[1]):
        expected[:, t] += 0.85 * expected[:, t - 1]
    torch.testing.assert_close(emphasised.generate(mel).double(), expected, rtol=1e-5, atol=1e-6)
    assert fastwave.convert(peer, R9Y9, SMALL | {"global_gain_scale": 0.0}).config.emphasis == Emphasis()
    with pytest.raises(ValueError, match="hparams postprocess must be none or inv_preemphasis, got mulaw"):
        fastwave.convert(peer, R9Y9, SMALL | {"postprocess": "mulaw"})


def test_without_an_upsampling_network_frames_are_repeated():
    golden = Golden("r9y9_wavenet_vocoder__mol10_local", torch.float32)
    tensors = {key: value for key, value in golden.state_dict().items() if not key.startswith("upsample_net.")}
    model = fastwave.convert(tensors, R9Y9, {"stacks": 2, "hop_size": 12}).requires_grad_(False)
    c = golden["in.c"][:1, :, :3]
    expected = fastwave.convert(golden.state_dict(), R9Y9, {"stacks": 2}).stack(
        torch.zeros(1, 1, 36), c.repeat_interleave(12, 2)
    )
    torch.testing.assert_close(model.network(torch.zeros(1, 1, 36), model.upsampler(c)), expected)


# any sizes -----------------------------------------------------------------------------------------------------------

small = st.integers(1, 6)
even = st.integers(1, 3).map(lambda n: 2 * n)


@st.composite
def wavenet_hparams(draw):
    inputs = draw(st.sampled_from(["gaussian", "logistic", "normal", "one-hot"]))
    mixture = 3 * draw(small)
    outputs = {"gaussian": 2, "logistic": mixture, "normal": mixture, "one-hot": draw(st.integers(2, 20))}[inputs]
    stacks, network = draw(st.integers(1, 3)), draw(st.sampled_from(["UpsampleNetwork", "ConvInUpsampleNetwork"]))
    cin, pad = draw(small), draw(st.integers(0, 2))
    params = dict(upsample_scales=draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)), cin_channels=cin)
    params |= dict(cin_pad=pad, freq_axis_kernel_size=draw(st.sampled_from([1, 3])))
    params |= draw(st.sampled_from([{}, dict(upsample_activation="ReLU"), dict(upsample_activation="LeakyReLU")]))
    speakers = draw(st.sampled_from([{}, SPEAKERS, SPEAKERS | {"use_speaker_embedding": False}]))
    return (
        SMALL
        | speakers
        | dict(
            out_channels=outputs,
            layers=stacks * draw(st.integers(1, 3)),
            stacks=stacks,
            residual_channels=draw(small),
            gate_channels=draw(even),
            skip_out_channels=draw(small),
            kernel_size=draw(st.integers(1, 3)),
            cin_channels=cin,
            cin_pad=pad,
            scalar_input=inputs != "one-hot",
            output_distribution="Logistic" if inputs in ("logistic", "one-hot") else "Normal",
            upsample_net=network,
            upsample_params=params,
        )
    )


def round_trip(model, folder):
    """The model as saved and loaded, with the same outputs, and the same from the kernels."""
    model.save(folder)
    loaded = models.load(folder)
    mel = torch.randn(2, model.config.mel.n_mels, 2, generator=torch.Generator().manual_seed(0))
    speaker = None
    if getattr(model.config, "speaker_channels", 0):
        speaker = torch.tensor([0, 3]) if model.config.speakers else torch.ones(2, model.config.speaker_channels, 1)
    named = {} if speaker is None else {"speaker": speaker}
    wave = model.generate(mel, **named)
    assert wave.isfinite().all() and wave.shape == (2, 2 * model.config.mel.hop_length)
    assert torch.equal(loaded.generate(mel, **named), wave)
    torch.testing.assert_close(fastwave.Vocoder(loaded).generate(mel, **named), wave, rtol=1e-3, atol=1e-4)
    return loaded


@settings(max_examples=20, deadline=None, derandomize=True)
@given(hparams=wavenet_hparams(), seed=st.integers(0, 99))
def test_any_wavenet(hparams, seed, tmp_path_factory):
    module = peers.randomised(peers.WaveNet(hparams), seed)
    model = fastwave.convert(module.state_dict(), R9Y9, hparams)
    config = round_trip(model, tmp_path_factory.mktemp("model")).config
    params = hparams["upsample_params"]
    assert config.dilations == tuple(layer.conv.dilation[0] for layer in module.conv_layers)
    assert config.stack_spec().in_channels == (1 if hparams["scalar_input"] else hparams["out_channels"])
    assert config.stack_spec().out_channels == hparams["out_channels"]
    assert (config.residual_channels, 2 * config.gate_channels) == (
        hparams["residual_channels"],
        hparams["gate_channels"],
    )
    assert (config.skip_channels, config.kernel_size) == (hparams["skip_out_channels"], hparams["kernel_size"])
    assert (config.mel.n_mels, config.upsample_context) == (hparams["cin_channels"], hparams["cin_pad"])
    assert config.mel.hop_length == math.prod(params["upsample_scales"])
    assert config.upsample_freq_kernel == params["freq_axis_kernel_size"]
    slopes = {"none": 1.0, "ReLU": 0.0, "LeakyReLU": 0.01}
    assert config.upsample_slope == slopes[params.get("upsample_activation", "none")]
    assert config.speaker_channels == max(0, hparams["gin_channels"])
    assert config.speakers == (hparams["n_speakers"] if hparams["use_speaker_embedding"] else 0)


@st.composite
def clarinet_hparams(draw):
    cin = draw(small)
    both = [
        dict(residual_channels=draw(small), gate_channels=draw(small), skip_channels=draw(small), cin_channels=cin)
        | dict(num_layers=draw(st.integers(1, 3)), kernel_size=draw(st.integers(1, 3)))
        for _ in range(2)
    ]
    student, teacher = both
    student |= dict(num_blocks_student=draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
    student |= dict(front_channels=draw(st.integers(1, 9)))
    teacher |= dict(num_blocks=draw(st.integers(1, 2)))
    teacher |= dict(upsample_scales=draw(st.lists(even, min_size=1, max_size=2)))
    return {"student": student, "teacher": teacher}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(hparams=clarinet_hparams(), seed=st.integers(0, 99))
def test_any_clarinet(hparams, seed, tmp_path_factory):
    sizes = hparams["teacher"]
    teacher = peers.randomised(peers.Wavenet(sizes), seed)
    model = fastwave.convert(teacher.state_dict(), KSW0306, sizes)
    config = round_trip(model, tmp_path_factory.mktemp("model")).config
    assert config.dilations == tuple(block.filter_conv.conv.dilation[0] for block in teacher.res_blocks)
    assert (config.gate_channels, config.front_width) == (sizes["gate_channels"], 32)
    assert config.mel.hop_length == math.prod(sizes["upsample_scales"])

    student = peers.randomised(peers.Wavenet_Student(hparams["student"]), seed)
    both = {"student": student.state_dict(), "teacher": teacher.state_dict()}
    config = round_trip(fastwave.convert(both, KSW0306, hparams), tmp_path_factory.mktemp("model")).config
    assert config.flows == tuple(
        tuple(block.filter_conv.conv.dilation[0] for block in flow.res_blocks) for flow in student.iafs
    )
    sizes = hparams["student"]
    assert (config.front_width, config.kernel_size) == (sizes["front_channels"], sizes["kernel_size"])
    assert config.mel.hop_length == math.prod(hparams["teacher"]["upsample_scales"])
