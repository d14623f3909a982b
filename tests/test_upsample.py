"""upsample against its float64 reference, on every instruction set."""

import math

import pytest
import torch
from kernels import OPCHECKS, assert_close

from fastwave.layers import Upsampler
from fastwave.ops.custom import arguments
from fastwave.ops.upsample import UpsampleSpec, upsample, upsample_ref
from fastwave.pack import pack_upsample


@pytest.mark.parametrize(
    ("kind", "scales", "options"),
    [
        ("transposed", (15, 20), dict(freq_kernel=3, slope=0.4)),
        ("transposed", (4,), dict(freq_kernel=5, slope=1.0, context=2)),
        ("stretched", (4, 3), dict(freq_kernel=1, context=2, context_conv=True)),
        ("stretched", (4, 3), dict(freq_kernel=3, context=2, context_conv=True, causal=True)),
        ("stretched", (2, 2, 3), dict(causal=True, context=1)),
        ("stretched", (2, 2, 4), dict(freq_kernel=3, slope=0.4, context=1)),
        ("nearest", (3, 5), {}),
        ("nearest", (), {}),
    ],
)
def test_upsample(isa, kind, scales, options):
    torch.manual_seed(0)
    spec = UpsampleSpec(n_mels=6, scales=scales, **options)
    module = Upsampler(spec, kind).requires_grad_(False)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    packed = pack_upsample(module.weights())
    frames = 12
    mel = torch.randn(2, 6, frames + 2 * spec.context)
    weights64 = Upsampler(spec, kind).double()
    weights64.load_state_dict(module.state_dict())
    reference = upsample_ref(mel.double(), weights64.weights(), spec)
    whole = upsample(mel, packed, spec)
    assert_close(whole, module(mel), reference.detach())
    for first, end in ((0, 1), (3, 4), (5, 9), (0, frames), (11, 12)):  # a window gives the whole's bits
        start = max(0, first - spec.reach + spec.context)
        stop = min(frames, end + spec.reach - spec.context) + 2 * spec.context
        window = upsample(mel[..., start:stop], packed, spec, skip=first - start, frames=end - first)
        rate = math.prod(scales)
        assert torch.equal(window, whole[..., first * rate : end * rate])


def test_upsample_passes_opcheck():
    upsampler = Upsampler(UpsampleSpec(n_mels=6, scales=(4, 4)), "transposed").requires_grad_(False)
    tensors = (torch.rand(2, 6, 5), pack_upsample(upsampler.weights()))
    keywords = dict(skip=1, frames=2, threads=1, **arguments(upsampler.spec))
    torch.library.opcheck(torch.ops.fastwave.upsample.default, tensors, keywords, test_utils=OPCHECKS)
