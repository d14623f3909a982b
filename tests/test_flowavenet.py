"""FloWaveNet: the public implementation's goldens, its flow, its converter, and its training."""

import dataclasses
import math

import peers
import pytest
import torch
from golden import Golden, everywhere, run_upsampler
from refusals import assert_refused
from trainings import LJ, assert_resumes, log_lines, losses_on_speech, needs_speech

import fastwave
from fastwave import models
from fastwave.audio import MelSpec
from fastwave.flows import squeeze
from fastwave.models import FloWaveNet, FloWaveNetConfig
from fastwave.train import TRAININGS, loop

PEER, NAME = "ksw0306/FloWaveNet", "ksw0306_FloWaveNet__flow"
references = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])

MEL = MelSpec(sample_rate=8000, n_fft=64, hop_length=16, win_length=64, n_mels=6, fmax=4000.0)
TINY = FloWaveNetConfig(
    mel=MEL,
    upsample_scales=(4, 4),
    blocks=3,
    flows=2,
    blocks_per_split=1,
    dilations=(1, 2),
    prior_dilations=(1,),
    channels=5,
)


def converted(dtype=torch.float32):
    golden = Golden(NAME, dtype)
    model = fastwave.convert(golden.state_dict(), PEER, golden.hparams).to(dtype).requires_grad_(False)
    return golden, model


def example(frames=2, context=0):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, frames * 16, generator=generator), torch.rand(2, 6, frames + 2 * context, generator=generator)


# goldens -------------------------------------------------------------------------------------------------------------


@references
def test_forward(dtype):
    golden, model = converted(dtype)
    wave, mel = golden["in.x"][:, 0], golden["in.c"]
    blocks = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, outputs: blocks.append(outputs))
    z, log_p, logdet = model(wave, mel)
    golden.check(log_p, "log_p")
    golden.check(logdet, "logdet")
    x, _, log_ps, logdets = zip(*blocks, strict=True)
    golden.check(x[-1], "z_final")
    golden.check(torch.stack(log_ps), "block_log_p")
    golden.check(torch.stack(logdets), "block_logdet")
    golden.check(model.loss(wave, mel), "loss")
    torch.testing.assert_close(model.generate(mel, noise=z), wave, rtol=0, atol=1e-5)


@references
def test_initialised_from_data(dtype):
    golden, model = converted(dtype)
    model.initialized.fill_(False)
    _, log_p, logdet = model.train()(golden["in.x"][:, 0], golden["in.c"])
    golden.check(log_p, "ddi.log_p")
    golden.check(logdet, "ddi.logdet")
    for key, value in model.state_dict().items():
        if key == "blocks.0.flows.0.actnorm.loc":  # its recorded rounding is 0
            torch.testing.assert_close(value, golden[f"out.ddi.{key}"], rtol=2**-22, atol=1e-9)
        elif "actnorm" in key:
            golden.check(value, f"ddi.{key}")


@everywhere
def test_reverse(dtype, kernels):
    golden, model = converted(dtype)
    golden.check(run_upsampler(model.upsampler, golden["in.c"], kernels), "c_up")
    generate = fastwave.Vocoder(model).generate if kernels else model.generate
    for name, temperature in (("reverse", 1.0), ("reverse_t0.8", 0.8), ("reverse_zero", 0.0)):
        golden.check(generate(golden["in.c"], noise=golden["in.z"], temperature=temperature)[:, None], name)


@references
def test_likelihood_of_the_reverse(dtype):
    golden, model = converted(dtype)
    _, log_p, logdet = model(model.inverse(golden["in.z"][:, 0], golden["in.c"]), golden["in.c"])
    golden.check(logdet, "logdet_of_reverse")
    if dtype == torch.float64:
        golden.check(log_p, "log_p_of_reverse")
    else:  # ten times the recorded rounding is less than a unit in the last place
        torch.testing.assert_close(log_p, golden["out.log_p_of_reverse"], rtol=2**-22, atol=0)


# the flow ------------------------------------------------------------------------------------------------------------


def test_inverse_with_context():
    """Where the upsampler eats frames, both directions take them."""
    model = FloWaveNet(dataclasses.replace(TINY, upsample_context=1)).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    wave, mel = example(context=1)
    z, _, _ = model(wave, mel)
    torch.testing.assert_close(model.inverse(z, mel), wave, rtol=0, atol=1e-5)


def test_activation_norms_are_initialised_once(tmp_path):
    torch.manual_seed(0)
    model = FloWaveNet(TINY)
    wave, mel = example()
    first = model.blocks[0].flows[0].actnorm
    model.eval()(wave, mel)
    assert not model.initialized and (first.scale == 1).all()
    model.train()(3 * wave + 1, mel)
    assert model.initialized
    scale = first.scale.detach().clone()
    x = squeeze((3 * wave + 1)[:, None], 2)
    std, mean = torch.std_mean(first(x)[0], (0, 2))
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(std, torch.ones(2), rtol=1e-5, atol=0)
    model.save(tmp_path)
    loaded = models.load(tmp_path).train()
    for trained in (model, loaded):
        trained(wave, mel)
        assert torch.equal(trained.blocks[0].flows[0].actnorm.scale, scale)


CHANGES = {
    "blocks": (dict(blocks=0), "blocks must be at least 1, got 0"),
    "odd-flows": (dict(flows=3), "flows must be even, got 3"),
    "splits": (dict(blocks_per_split=0), "blocks_per_split must be at least 1, got 0"),
    "bands": (dict(mel=dataclasses.replace(MEL, n_mels=5)), "n_mels must be even, for a coupling reads half of the"),
    "repeat": (dict(upsample_scales=(4,), cond_repeat=4), "cond_repeat must be 1, got 4"),
    "hop": (dict(blocks=5), "hop_length must be a multiple of 2 ** blocks = 32, got 16"),
    "kernel": (dict(kernel_size=2), "front_width of a centred front must be odd, got 2"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_configurations_that_there_are_not(name):
    changes, message = CHANGES[name]
    assert_refused(lambda: dataclasses.replace(TINY, **changes), message)


# the converter -------------------------------------------------------------------------------------------------------

SMALL = dict(cin_channel=4, n_block=2, n_flow=2, n_layer=1, block_per_split=1)


class ZeroConv(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = torch.nn.Conv1d(inputs, outputs, 1)
        self.scale = torch.nn.Parameter(torch.zeros(1, outputs, 1))


def wavenet(channels, cin, layers, filter_size):
    hparams = dict(residual_channels=filter_size, gate_channels=filter_size, skip_channels=filter_size)
    hparams |= dict(kernel_size=3, cin_channels=cin, num_layers=layers)
    module = peers.Flow(hparams, 1, 3, 2)
    module.front_conv[0] = peers.Conv(channels // 2, filter_size, 3)
    module.final_conv[3] = ZeroConv(filter_size, channels)
    return module


def peer(filter_size=3, **changes):
    """A random state dict of the peer, of the arguments of its class."""
    hparams = SMALL | changes
    model, channels, cin = torch.nn.Module(), 1, hparams["cin_channel"]
    model.blocks = torch.nn.ModuleList()
    for i in range(1, hparams["n_block"] + 1):
        channels, cin = 2 * channels, 2 * cin
        block = torch.nn.Module()
        block.flows = torch.nn.ModuleList()
        for _ in range(hparams["n_flow"]):
            flow = torch.nn.Module()
            flow.actnorm, flow.coupling = torch.nn.Module(), torch.nn.Module()
            for name in ("loc", "scale"):
                flow.actnorm.register_parameter(name, torch.nn.Parameter(torch.ones(1, channels, 1)))
            flow.coupling.net = wavenet(channels, cin // 2, hparams["n_layer"], filter_size)
            block.flows.append(flow)
        if i % hparams["block_per_split"] == 0 and i < hparams["n_block"]:
            block.prior = wavenet(channels, cin, 2, filter_size)
            channels //= 2
        model.blocks.append(block)
    upsampler = peers.Wavenet(peers.SMALL_TEACHER | dict(upsample_scales=[16, 16])).upsample_conv
    model.upsample_conv = upsampler
    return peers.randomised(model).state_dict()


@pytest.mark.parametrize(
    "sizes",
    [
        dict(),
        dict(n_layer=3, block_per_split=8),
        dict(n_block=5, block_per_split=2),
        dict(n_block=8, n_flow=6, n_layer=2, block_per_split=4),
    ],
)
def test_any_sizes(sizes):
    """The last ones are those of train.py, but for the channels."""
    hparams = SMALL | sizes
    config = fastwave.convert(peer(**sizes), PEER, hparams | {"affine": True, "causal": "no"}).config
    without = fastwave.convert(peer(**sizes), PEER).config
    assert without == dataclasses.replace(config, blocks_per_split=min(config.blocks_per_split, config.blocks))
    assert (config.blocks, config.flows, config.channels) == (hparams["n_block"], hparams["n_flow"], 3)
    assert config.blocks_per_split == hparams["block_per_split"]
    assert config.dilations == tuple(2**n for n in range(hparams["n_layer"])) and config.prior_dilations == (1, 2)
    assert config.mel == dataclasses.replace(MelSpec.preset(PEER), n_mels=4)
    splits = [i for i, (_, prior) in enumerate(config.block_specs(), 1) if prior is not None]
    assert splits == [i for i in range(1, config.blocks) if i % hparams["block_per_split"] == 0]


def test_data_parallel_and_float64():
    golden, model = converted()
    tensors = {f"module.{key}": value.double() for key, value in golden.state_dict().items()}
    parallel = fastwave.convert({"state_dict": tensors, "global_step": 3}, PEER, golden.hparams)
    assert parallel.config == model.config and parallel.initialized and not parallel.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(parallel.state_dict()[key], value, rtol=2**-22, atol=0)


def edited(drop=(), **changes):
    tensors = {key: value for key, value in peer().items() if not any(part in key for part in drop)}
    return tensors | {key.replace("__", "."): value for key, value in changes.items()}


SCALE = "blocks__0__prior__final_conv__3__scale"
REFUSED = {
    "missing": (edited(["blocks.1.flows.0.actnorm.loc"]), {}, "source: missing blocks.1.flows.0.actnorm.loc"),
    "unexpected": (edited(step=torch.ones(1)), {}, "source: unexpected step"),
    "prior-between": (
        {key: value for key, value in peer(n_block=4).items() if "blocks.1.prior" not in key},
        {},
        "source: missing blocks.1.prior.front_conv.0.conv.weight",
    ),
    "no-prior": (edited(["prior"]), {}, "blocks.1.flows.0.actnorm.loc must be (1, 4, 1), got (1, 2, 1)"),
    "scale": (edited(**{SCALE: torch.zeros(1, 3, 1)}), {}, "final_conv.3.scale must be (1, 2, 1), got (1, 3, 1)"),
    "nan": (edited(**{SCALE: torch.full((1, 2, 1), math.nan)}), {}, "final_conv.3.scale must be finite, got NaN"),
    "odd-flows": (peer(n_flow=3), {}, "flows must be even, got 3"),
    "odd-bands": (peer(cin_channel=3), {}, "n_mels must be even, for a coupling reads half of the bands, got 3"),
    "blocks": (peer(), {"n_block": 8}, "hparams n_block must be 2, as in the tensors, got 8"),
    "flows": (peer(), {"n_flow": 6}, "hparams n_flow must be 2, as in the tensors, got 6"),
    "layers": (peer(), {"n_layer": 2}, "hparams n_layer must be 1, as in the tensors, got 2"),
    "cin": (peer(), {"cin_channels": 80}, "hparams cin_channels must be 4, as in the tensors, got 80"),
    "split": (peer(), {"block_per_split": 4}, "hparams block_per_split must be 1, as in the tensors, got 4"),
    "causal": (peer(), {"causal": "yes"}, "hparams causal must be no, got yes"),
    "additive": (peer(), {"affine": False}, "hparams affine must be True, as in the tensors, got False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    tensors, hparams, message = REFUSED[name]
    assert_refused(lambda: fastwave.convert(tensors, PEER, hparams), message)


# training ------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_like_another(tmp_path):
    assert_resumes(TRAININGS["flowavenet"], TINY, tmp_path, frames=20)
    state = torch.load(tmp_path / "pieces" / "checkpoint.pt", weights_only=True)
    assert state["modules"]["model"]["initialized"]


@needs_speech
def test_it_learns_speech(tmp_path):
    config = FloWaveNetConfig(mel=MelSpec(), blocks=3, flows=2, blocks_per_split=2, channels=8)
    losses = losses_on_speech(TRAININGS["flowavenet"], config, tmp_path, batch=1, frames=8)
    assert losses[-1] < losses[0] - 0.5


@needs_speech
def test_the_built_in_configuration(tmp_path):
    run = TRAININGS["flowavenet"](data=LJ, out=tmp_path, steps=1, batch=1, frames=8, exclude_clips=("LJ050*",))
    loop.run(run, quiet=True)
    assert math.isfinite(log_lines(run)[0]["loss"])
    assert run.rate(0) == run.rate(199_999) == 1e-3 and run.rate(200_000) == 5e-4
    assert models.load(tmp_path / "model").generate(torch.rand(1, 80, 2)).shape == (1, 512)
