"""FloWaveNet: its flow."""

import dataclasses

import peers
import pytest
import torch
from refusals import assert_refused

import fastwave
from fastwave import models
from fastwave.audio import MelSpec
from fastwave.models import FloWaveNet, FloWaveNetConfig

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


def randomised(config=TINY, dtype=torch.float64):
    """A model whose couplings, which are the identity at first, do something."""
    model = peers.randomised(FloWaveNet(config)).to(dtype).requires_grad_(False).eval()
    for block in model.blocks:
        for flow in block.flows:
            flow.actnorm.scale.add_(1)
    return model


def example(config=TINY, frames=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    wave = torch.randn(2, frames * config.mel.hop_length, generator=generator, dtype=torch.float64)
    mel = torch.rand(2, config.mel.n_mels, frames, generator=generator, dtype=torch.float64)
    return wave.to(dtype), mel.to(dtype)


# the flow ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks_per_split", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_inverse(blocks_per_split, dtype, bound):
    model = randomised(dataclasses.replace(TINY, blocks_per_split=blocks_per_split), dtype)
    wave, mel = example(dtype=dtype)
    z, _, _ = model(wave, mel)
    assert z.shape == wave.shape and (z - wave).abs().max() > 0.1
    torch.testing.assert_close(model.inverse(z, mel), wave, rtol=0, atol=bound)
    torch.testing.assert_close(model.generate(mel, noise=z), wave, rtol=0, atol=bound)


def test_inverse_with_context():
    """Where the upsampler eats frames, both directions take them."""
    model = randomised(dataclasses.replace(TINY, upsample_context=1))
    wave, mel = example()
    mel = torch.cat([mel, mel.flip(2)], 2)
    z, _, _ = model(wave, mel)
    torch.testing.assert_close(model.inverse(z, mel), wave, rtol=0, atol=1e-11)


@pytest.mark.parametrize("blocks_per_split", [1, 2, 3])
def test_likelihood(blocks_per_split):
    """log p(x) = log N(z; 0, I) + log |det dz/dx|."""
    model = randomised(dataclasses.replace(TINY, blocks_per_split=blocks_per_split))
    wave, mel = (part[:1] for part in example())
    z, log_p, logdet = model(wave, mel)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, mel)[0], wave)[0, :, 0]
    exact = torch.linalg.slogdet(jacobian)[1]
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    torch.testing.assert_close((log_p + logdet) * wave.numel(), normal + exact, rtol=1e-10, atol=0)
    if blocks_per_split == 3:  # no channels leave
        torch.testing.assert_close(logdet * wave.numel(), exact, rtol=1e-10, atol=0)
    torch.testing.assert_close(model.loss(wave, mel), -(log_p + logdet), rtol=0, atol=0)


def test_activation_norms_are_initialised_once(tmp_path):
    torch.manual_seed(0)
    model = FloWaveNet(TINY)
    wave, mel = example(dtype=torch.float32)
    first = model.blocks[0].flows[0].actnorm
    model.eval()(wave, mel)
    assert not model.initialized and (first.scale == 1).all()
    model.train()(3 * wave + 1, mel)
    assert model.initialized
    scale = first.scale.detach().clone()
    x = fastwave.flows.squeeze((3 * wave + 1)[:, None], 2)
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
