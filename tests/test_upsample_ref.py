import pytest
import torch

from fastwave.layers import Upsampler
from fastwave.ops.upsample import UpsampleSpec, upsample_ref

SPECS = {
    "transposed": ("transposed", dict(scales=(4, 6), freq_kernel=3, slope=0.4)),
    "transposed, odd": ("transposed", dict(scales=(15, 20), freq_kernel=3, slope=0.4)),
    "transposed, odd twice": ("transposed", dict(scales=(3, 5), freq_kernel=1, slope=1.0)),
    "transposed, context": ("transposed", dict(scales=(2, 3), freq_kernel=5, context=2)),
    "stretched": ("stretched", dict(scales=(4, 4), freq_kernel=1)),
    "stretched, slope": ("stretched", dict(scales=(2, 3, 4), freq_kernel=3, slope=0.4)),
    "stretched, context": ("stretched", dict(scales=(3, 2), context=1)),
    "stretched, context conv": ("stretched", dict(scales=(4, 4), context=2, context_conv=True)),
    "causal": ("stretched", dict(scales=(3, 2), freq_kernel=3, slope=0.4, causal=True)),
    "causal, context conv": ("stretched", dict(scales=(4, 4), context=2, context_conv=True, causal=True)),
    "nearest": ("nearest", dict(scales=(6,))),
    "nearest, context conv": ("nearest", dict(scales=(2, 3), freq_kernel=3, context=1, context_conv=True)),
    "scale 1": ("stretched", dict(scales=(1, 3), freq_kernel=3)),
    "transposed, scale 1": ("transposed", dict(scales=(1, 4), freq_kernel=3)),
    "no stage": ("nearest", dict(scales=(), context=1)),
}
upsamplers = pytest.mark.parametrize("kind, shape", SPECS.values(), ids=SPECS)
BANDS, FRAMES = 7, 11


def make(kind, shape, random=True):
    spec = UpsampleSpec(n_mels=BANDS, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Upsampler(spec, kind).double().requires_grad_(False)
        if random:
            for parameter in module.parameters():
                parameter.normal_()
        mel = torch.randn(2, BANDS, FRAMES + 2 * spec.context, dtype=torch.float64)
    return module, spec, mel


def assert_same(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@upsamplers
def test_polyphase_equals_the_module(kind, shape):
    module, spec, mel = make(kind, shape)
    expected = module(mel)
    assert expected.shape == (2, BANDS, FRAMES * spec.columns_per_frame)
    assert_same(upsample_ref(mel, module.weights(), spec), expected)


@upsamplers
def test_frames_depend_on_reach(kind, shape):
    """A window of frames with ``reach`` more of them on either side makes the same columns as the whole."""
    module, spec, mel = make(kind, shape)
    weights, rate = module.weights(), spec.columns_per_frame
    whole = upsample_ref(mel, weights, spec)
    neighbours = spec.reach - spec.context
    for start, frames in [(0, FRAMES), (0, 1), (1, 2), (4, 3), (FRAMES - 1, 1), (5, 0), (FRAMES - 4, None)]:
        stop = FRAMES if frames is None else start + frames
        left, right = max(0, start - neighbours), min(FRAMES, stop + neighbours)
        part = mel[..., left : right + 2 * spec.context]
        columns = upsample_ref(part, weights, spec, skip=start - left, frames=frames)
        assert_same(columns, whole[..., start * rate : stop * rate])


@upsamplers
def test_a_frame_moves_no_column_beyond_reach(kind, shape):
    module, spec, mel = make(kind, shape)
    changed, at = mel.clone(), FRAMES // 2
    changed[..., at + spec.context] += 1
    moved = (module(changed) != module(mel)).any(1).any(0).unflatten(0, (FRAMES, -1)).any(1).nonzero().flatten()
    assert moved[0] >= (at if spec.causal else at - spec.reach) and moved[-1] <= at + spec.reach


@upsamplers
def test_starts_as_interpolation(kind, shape):
    """An untrained upsampler maps constant frames to the same constant, but where frames end or a band's edge is."""
    module, spec, mel = make(kind, shape, random=False)
    columns = module(torch.ones_like(mel))
    inside = columns[..., spec.reach * spec.columns_per_frame : -spec.reach * spec.columns_per_frame or None]
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-6)


def test_linear_interpolation():
    """Untrained transposed convolutions put the straight line between frame centres."""
    module, _, _ = make("transposed", dict(scales=(4,)), random=False)
    ramp = torch.arange(FRAMES, dtype=torch.float64).expand(1, BANDS, -1).contiguous()
    columns = module(ramp)[0, 0]
    centres = (torch.arange(len(columns), dtype=torch.float64) + 0.5) / 4 - 0.5
    assert_same(columns[4:-4], centres[4:-4])


def test_float32():
    module, spec, mel = make(*SPECS["stretched, context conv"])
    module, single = module.float(), mel.float()
    result = upsample_ref(single, module.weights(), spec)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, module(single))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(n_mels=0), "n_mels must be at least 1, got 0"),
        (dict(scales=(4, 0)), "scales must be positive integers, got (4, 0)"),
        (dict(freq_kernel=2), "freq_kernel must be odd, got 2"),
        (dict(freq_kernel=-1), "freq_kernel must be odd, got -1"),
        (dict(context=-1), "context must not be negative, got -1"),
    ],
)
def test_spec_errors(changes, message):
    with pytest.raises(ValueError) as error:
        UpsampleSpec(**(dict(n_mels=4, scales=(2,)) | changes))
    assert str(error.value) == message


def test_unknown_kind():
    with pytest.raises(ValueError, match="upsampler must be one of transposed, stretched, nearest, got 'linear'"):
        Upsampler(UpsampleSpec(n_mels=4, scales=(2,)), "linear")


def test_what_cannot_be_causal():
    spec = UpsampleSpec(n_mels=4, scales=(2,), causal=True)
    with pytest.raises(ValueError, match="upsampler must be 'stretched' where it is causal, got 'transposed'"):
        Upsampler(spec, "transposed")
