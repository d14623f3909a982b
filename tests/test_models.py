import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from fastwave.audio import MelSpec
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet, WaveNetConfig
from fastwave.noise import draw
from fastwave.ops.gated_stack import GatedStackSpec
from fastwave.ops.wavenet_sample import HeadSpec, initial_sampler_state, sampler_state_size, wavenet_sample_ref

MEL = MelSpec(sample_rate=8000, n_fft=64, hop_length=6, win_length=64, n_mels=5, fmax=4000.0)
STACK = dict(mel=MEL, residual_channels=4, gate_channels=5, skip_channels=6, kernel_size=2, upsample_scales=(2, 3))
WAVENETS = {
    "gaussian": dict(dilations=(1, 2, 4), front_width=4, front_relu=True),
    "gaussian, one frame per column": dict(dilations=(1, 2), upsample_scales=(), cond_repeat=6, upsampler="nearest"),
    "mixture of Gaussians": dict(
        distribution="mixture_of_gaussians", components=3, dilations=(3, 1), upsample_scales=(2,), cond_repeat=3
    ),
    "mixture of logistics, speakers": dict(
        distribution="mixture_of_logistics",
        components=2,
        dilations=(1, 2),
        kernel_size=3,
        speakers=3,
        speaker_channels=4,
        upsampler="stretched",
        upsample_context=2,
        upsample_context_conv=True,
    ),
    "softmax": dict(distribution="softmax", classes=12, companding="linear", dilations=(1, 2), upsample_context=1),
    "softmax, one-hot": dict(distribution="softmax", classes=8, one_hot_input=True, dilations=(1, 2), front_width=2),
    "softmax, first class": dict(
        distribution="softmax", classes=8, one_hot_input=True, initial_class=3, dilations=(1, 2)
    ),
}
FLOWS = dict(
    mel=MEL,
    flows=[(1, 2), (1,), (1, 2)],
    residual_channels=4,
    gate_channels=5,
    skip_channels=6,
    kernel_size=2,
    front_width=3,
)
STUDENTS = {
    "Algorithm 1": dict(upsample_scales=(2, 3)),
    "time reversal": dict(upsample_scales=(6,), upsampler="stretched", time_reversal=True),
    "first sample 0": dict(upsample_scales=(2,), cond_repeat=3, first_sample="zero"),
}
FRAMES, BATCH = 7, 3
SAMPLES = FRAMES * MEL.hop_length
wavenets = pytest.mark.parametrize("shape", WAVENETS.values(), ids=WAVENETS)
students = pytest.mark.parametrize("shape", STUDENTS.values(), ids=STUDENTS)


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(kind, config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).double().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.startswith("upsampler"):  # untrained, it interpolates
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def make_wavenet(shape):
    """A WaveNet, a mel without context, and the keywords that it needs besides."""
    model = build(WaveNet, WaveNetConfig(**(STACK | shape)))
    speaker = dict(speaker=torch.tensor([2, 0, 1])) if model.config.speakers else {}
    return model, normal(BATCH, MEL.n_mels, FRAMES), speaker


def make_student(shape):
    model = build(ClariNetStudent, ClariNetStudentConfig(**(FLOWS | shape)))
    return model, normal(BATCH, MEL.n_mels, FRAMES), normal(BATCH, SAMPLES, seed=1)


def noise_of(model, samples=SAMPLES, seed=0):
    return draw(model.noise_kinds, seed, BATCH, 0, samples).double()


def sampler(model, mel, speaker=None, **named):
    """wavenet_sample_ref from its first sample, with what WaveNet.generate hands it."""
    spec, first = model.stack.spec, model.first_input()
    named = dict(state=initial_sampler_state(spec, len(mel), first, dtype=first.dtype)) | named
    table = model.distribution.decode_table().double() if model.config.distribution == "softmax" else None
    return wavenet_sample_ref(
        named.pop("noise"),
        model.stack.weights(),
        spec,
        model.config.head_spec(),
        c=named.pop("c", model.condition(mel)),
        g=model.global_vectors(speaker),
        table=table,
        **named,
    )


def repeat(model, conditioning):
    """Conditioning at the sample rate."""
    return conditioning.repeat_interleave(model.config.cond_repeat, -1)


def assert_same(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


# wavenet_sample ------------------------------------------------------------------------------------------------------


@wavenets
def test_forced_samples_have_the_teacher_forced_parameters(shape):
    model, mel, speaker = make_wavenet(shape)
    wave = 0.4 * normal(BATCH, SAMPLES, seed=2)
    if model.config.distribution == "softmax":
        wave = model.distribution.decode_table().double()[model.distribution.quantize(wave)]
    samples, parameters = sampler(model, mel, noise=noise_of(model), forced=wave, **speaker)
    assert torch.equal(samples, wave)
    expected = model(wave, model.with_context(mel), **speaker)
    assert expected.shape == (BATCH, model.distribution.n_params, SAMPLES)
    assert_same(parameters, expected)


@wavenets
def test_free_running_samples_come_from_their_parameters(shape):
    model, mel, speaker = make_wavenet(shape)
    noise = noise_of(model)
    wave, parameters = sampler(model, mel, noise=noise, **speaker)
    assert_same(parameters, model(wave, model.with_context(mel), **speaker))
    assert torch.equal(wave, model.distribution.sample(parameters, noise).clamp(-1, 1))
    assert torch.equal(wave, model.generate(mel, noise=noise, **speaker))
    assert len(wave.unique()) > 5  # and not a constant


@wavenets
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_temperature(shape, temperature):
    model, mel, speaker = make_wavenet(shape)
    noise = noise_of(model)
    wave = model.generate(mel, noise=noise, temperature=temperature, **speaker)
    parameters = model(wave, model.with_context(mel), **speaker)
    assert_same(wave, model.distribution.sample(parameters, noise, temperature).clamp(-1, 1))
    if temperature == 0:
        assert torch.equal(wave, model.generate(mel, seed=5, temperature=0.0, **speaker))


@wavenets
def test_sampling_in_pieces(shape):
    model, mel, speaker = make_wavenet(shape)
    noise, c, every = noise_of(model), model.condition(mel), model.config.cond_repeat
    wave, parameters = sampler(model, mel, noise=noise, **speaker)
    state = initial_sampler_state(model.stack.spec, BATCH, model.first_input(), dtype=noise.dtype)
    assert state.shape == (BATCH, sampler_state_size(model.stack.spec))
    edges = [0, 6, 12, 12, 36, SAMPLES]
    pieces = [
        sampler(model, mel, noise=noise[..., a:b], c=c[..., a // every : b // every], state=state, **speaker)
        for a, b in pairwise(edges)
    ]
    assert torch.equal(torch.cat([w for w, _ in pieces], 1), wave)
    assert torch.equal(torch.cat([p for _, p in pieces], 2), parameters)


@wavenets
def test_a_forced_prefix_primes(shape):
    """Forcing what was drawn changes nothing, however long."""
    model, mel, speaker = make_wavenet(shape)
    noise = noise_of(model)
    wave, parameters = sampler(model, mel, noise=noise, **speaker)
    result = sampler(model, mel, noise=noise, forced=wave[:, :10], **speaker)
    assert torch.equal(result[0], wave) and torch.equal(result[1], parameters)


@wavenets
def test_sampler_lengths(shape):
    """A row stops at its length, and its state stays there: the rest can follow in another call."""
    model, mel, speaker = make_wavenet(shape)
    noise, every = noise_of(model), model.config.cond_repeat
    wave, parameters = sampler(model, mel, noise=noise, **speaker)
    lengths = torch.tensor([SAMPLES, 0, 12])
    state = initial_sampler_state(model.stack.spec, BATCH, model.first_input(), dtype=noise.dtype)
    cut = sampler(model, mel, noise=noise, lengths=lengths, state=state, **speaker)
    kept = torch.arange(SAMPLES) < lengths[:, None]
    assert torch.equal(cut[0], wave.where(kept, 0)) and torch.equal(cut[1], parameters.where(kept[:, None], 0))
    for row in (1, 2):
        start = lengths[row].item()
        rest, _ = sampler(
            model,
            mel[row : row + 1],
            noise=noise[row : row + 1, :, start:],
            c=model.condition(mel)[row : row + 1, :, start // every :],
            state=state[row : row + 1],
            **{name: ids[row : row + 1] for name, ids in speaker.items()},
        )
        assert_same(rest[0], wave[row, start:])


def test_first_class_is_what_column_zero_reads():
    model, mel, _ = make_wavenet(WAVENETS["softmax, first class"])
    assert model.first_input().tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    wave = torch.zeros(BATCH, SAMPLES, dtype=torch.float64)
    one_hot = model.encode(wave)
    assert one_hot.shape == (BATCH, 8, SAMPLES) and (one_hot.sum(1) == 1).all()
    changed = dataclasses.replace(model.config, initial_class=4)
    other = WaveNet(changed).double()
    other.load_state_dict(model.state_dict())
    assert not torch.equal(model(wave, mel)[..., 0], other(wave, mel)[..., 0])
    assert_same(model(wave, mel)[..., 4:], other(wave, mel)[..., 4:])  # past its receptive field


@wavenets
def test_noise_channels(shape):
    config = WaveNetConfig(**(STACK | shape))
    distribution = config.make_distribution()
    assert config.head_spec().noise_channels(distribution.n_params) == len(distribution.noise_kinds)


def test_clamp():
    model, mel, _ = make_wavenet(WAVENETS["gaussian"] | dict(clamp=0.01))
    assert model.generate(mel, seed=0).abs().max() == 0.01


@pytest.mark.parametrize(
    "values, message",
    [
        (
            dict(distribution="laplace"),
            "distribution must be one of gaussian, mixture_of_gaussians, mixture_of_logistics, softmax, got 'laplace'",
        ),
        (dict(distribution="gaussian", clamp=0.0), "clamp must be positive, got 0.0"),
        (dict(distribution="gaussian", clamp=math.nan), "clamp must be positive, got nan"),
    ],
)
def test_head_errors(values, message):
    with pytest.raises(ValueError) as error:
        HeadSpec(**values)
    assert str(error.value) == message


# generate ------------------------------------------------------------------------------------------------------------


@wavenets
def test_generate(shape):
    model, mel, speaker = make_wavenet(shape)
    wave = model.generate(mel, seed=3, **speaker)
    assert wave.shape == (BATCH, SAMPLES) and wave.isfinite().all()
    assert torch.equal(wave, model.generate(mel, noise=noise_of(model, seed=3), **speaker))
    assert not torch.equal(wave, model.generate(mel, seed=4, **speaker))
    first = {name: ids[:1] for name, ids in speaker.items()}
    assert_same(model.generate(mel[:1], seed=3, **first), wave[:1])
    assert model.float().generate(mel.float(), seed=3, **speaker).dtype == torch.float32


@wavenets
def test_ragged_rows_equal_rows_alone(shape):
    model, mel, speaker = make_wavenet(shape)
    noise, hop = noise_of(model), MEL.hop_length
    lengths = torch.tensor([4, FRAMES, 1])
    wave = model.generate(mel, noise=noise, lengths=lengths, **speaker)
    assert wave.shape == (BATCH, SAMPLES)
    for row, frames in enumerate(lengths.tolist()):
        own = slice(row, row + 1)
        alone = model.generate(
            mel[own, :, :frames],
            noise=noise[own, :, : frames * hop],
            **{name: ids[own] for name, ids in speaker.items()},
        )
        assert_same(wave[own, : frames * hop], alone)
        assert not wave[row, frames * hop :].any()


@wavenets
def test_bad_input(shape):
    model, mel, speaker = make_wavenet(shape)

    def refuses(message, mel=mel, **named):
        with pytest.raises(ValueError) as error:
            model.generate(mel, **(speaker | named))
        assert str(error.value).startswith(message), error.value

    refuses("mel must be (batch, 5, frames), got (3, 4, 7)", mel=mel[:, :4])
    refuses("mel must be (batch, 5, frames), got (5, 7)", mel=mel[0])
    refuses("mel must be finite, got nan", mel=mel.where(mel < 0, math.nan))
    channels = len(model.noise_kinds)
    wanted = f"(3, {channels}, 42)" if channels > 1 else "(3, 42)"
    refuses(f"noise must be {wanted}, got (3, {channels}, 41)", noise=noise_of(model)[..., 1:])
    refuses("seed must be in [0, 2**64), got -1", seed=-1)
    refuses("temperature must be at least 0, got -1", temperature=-1)
    for lengths in ([1, 2], [0, 1, 2], [1, 2, 8]):
        refuses(f"lengths must be 3 integers from 1 to 7, got {lengths}", lengths=torch.tensor(lengths))
    refuses("lengths must be 3 integers from 1 to 7, got [1.0, 2.0, 3.0]", lengths=torch.tensor([1.0, 2.0, 3.0]))


def test_speakers():
    model, mel, speaker = make_wavenet(WAVENETS["mixture of logistics, speakers"])
    wave = model.generate(mel, seed=0, **speaker)
    embeddings = model.speakers(speaker["speaker"])[..., None]
    assert torch.equal(wave, model.generate(mel, seed=0, speaker=embeddings))
    assert not torch.equal(wave, model.generate(mel, seed=0, speaker=speaker["speaker"].flip(0)))
    by_embedding = WaveNet(dataclasses.replace(model.config, speakers=0)).double()
    by_embedding.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("speakers.")})
    assert torch.equal(wave, by_embedding.generate(mel, seed=0, speaker=embeddings))
    single = make_wavenet(WAVENETS["gaussian"])[0]
    for refusing, value, message in [
        (model, None, "speaker must be ids (batch,) or embeddings (batch, channels, 1), got None"),
        (model, torch.tensor([0, 1, 3]), "speaker must be ids below 3, got [0, 1, 3]"),
        (
            by_embedding,
            speaker["speaker"],
            "speaker must be embeddings (batch, channels, 1): this model has no table of speakers",
        ),
        (single, speaker["speaker"], "speaker must be None: this model has no global conditioning"),
    ]:
        with pytest.raises(ValueError) as error:
            refusing.generate(mel, speaker=value)
        assert str(error.value) == message


# the student ---------------------------------------------------------------------------------------------------------


@students
def test_student_forward_is_generate(shape):
    model, mel, z = make_student(shape)
    assert_same(model(z, mel)[0], model.generate(mel, noise=z))
    assert_same(model(0.5 * z, mel)[0], model.generate(mel, noise=z[:, None], temperature=0.5))


@students
def test_student_gives_the_gaussian_of_every_sample(shape):
    """x = mu_q + sigma_q z^(0) at every sample (Algorithm 1)."""
    model, mel, z = make_student(shape)
    x, mu_q, log_sigma_q = model(z, mel)
    assert_same(x, mu_q + log_sigma_q.exp() * z)
    if shape.get("first_sample") == "zero":
        assert not x[:, 0].any()


@students
def test_log_sigma_q_is_the_jacobian(shape):
    model, mel, z = make_student(shape)
    jacobian = torch.autograd.functional.jacobian(lambda z: model(z, mel[:1])[0][0], z[:1])[:, 0]
    log_sigma_q = model(z[:1], mel[:1])[2][0]
    if shape.get("time_reversal"):  # a product of lower and upper triangles
        assert_same(torch.linalg.slogdet(jacobian).logabsdet, log_sigma_q.sum())
    else:
        assert not jacobian.triu(1).any()
        assert_same(jacobian.diagonal(), log_sigma_q.exp())


def test_mu_q_and_sigma_q_do_not_read_their_own_sample():
    model, mel, z = make_student(STUDENTS["Algorithm 1"])
    changed = z.clone()
    changed[:, 20] += 1
    for result, moved in zip(model(z, mel)[1:], model(changed, mel)[1:], strict=True):
        assert torch.equal(result[:, :21], moved[:, :21]) and not torch.equal(result[:, 21:], moved[:, 21:])


def test_untrained_student_is_quiet():
    model = ClariNetStudent(ClariNetStudentConfig(**(FLOWS | STUDENTS["Algorithm 1"])))
    x, _, log_sigma_q = model(normal(BATCH, SAMPLES).float(), normal(BATCH, MEL.n_mels, FRAMES).float())
    assert abs(log_sigma_q.mean() + 4) < 1 and x.abs().max() < 1


# training ------------------------------------------------------------------------------------------------------------


@wavenets
def test_wavenet_loss(shape):
    model, mel, speaker = make_wavenet(shape)
    model.requires_grad_()
    wave = 0.4 * normal(BATCH, SAMPLES, seed=2).clamp(-1, 1)
    loss = model.loss(wave, model.with_context(mel), **speaker)
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    with torch.no_grad():
        nll = -model.distribution.log_prob(
            model(wave, model.with_context(mel), **speaker), wave, model.config.train_log_scale_min
        )
    assert_same(loss.detach(), nll.mean())


def test_student_loss():
    model, _, _ = make_student(STUDENTS["time reversal"])
    model = model.float().requires_grad_()
    frames = 200  # the longest window needs 1,024 samples
    wave, mel = 0.1 * normal(2, frames * MEL.hop_length).float(), normal(2, MEL.n_mels, frames).float()
    loss = model.loss(wave, mel)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# configurations ------------------------------------------------------------------------------------------------------


def multiply_adds(specs: list[GatedStackSpec]) -> int:
    """A sample, of all products."""
    total = 0
    for s in specs:
        per_layer = 2 * s.gate_channels * (s.residual_channels * s.kernel_size + s.cond_channels)
        per_layer += s.gate_channels * (s.residual_channels + s.skip_channels)
        widths = [s.skip_channels, *s.head_channels]
        total += s.front_width * s.in_channels * s.residual_channels + s.layers * per_layer
        total += sum(i * o for i, o in pairwise(widths))
    return total


@pytest.mark.parametrize(
    "kind, config, layers, millions, parameters",
    [
        (WaveNet, WaveNetConfig.clarinet(), [20], 2.40, 2_390_614),
        (ClariNetStudent, ClariNetStudentConfig.student_1(), [10] * 6, 2.62, 2_609_504),
        (ClariNetStudent, ClariNetStudentConfig.student_2(), [10, 10, 10, 30], 2.61, 2_605_020),
    ],
    ids=["clarinet", "student_1", "student_2"],
)
def test_sizes_of_the_paper(kind, config, layers, millions, parameters):
    specs = [config.stack_spec()] if kind is WaveNet else config.stack_specs()
    assert [spec.layers for spec in specs] == layers
    assert round(multiply_adds(specs) / 1e6, 2) == millions
    with torch.random.fork_rng():
        model = kind(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (config.mel.sample_rate, config.mel.hop_length, config.mel.n_mels) == (24000, 300, 80)


def test_names_take_changes():
    assert WaveNetConfig.clarinet(kernel_size=3).kernel_size == 3
    student = ClariNetStudentConfig.student_2(residual_channels=32)
    assert student.residual_channels == 32 and student.time_reversal
    model = build(ClariNetStudent, ClariNetStudentConfig(**(FLOWS | STUDENTS["time reversal"])))
    assert [model.reversed_flow(i) for i in range(3)] == [False, True, False]


@pytest.mark.parametrize(
    "config, changes, message",
    [
        (
            WaveNetConfig,
            dict(upsample_scales=(2, 2)),
            "upsample_scales and cond_repeat must multiply to hop_length 6, got 4",
        ),
        (WaveNetConfig, dict(cond_repeat=2), "upsample_scales and cond_repeat must multiply to hop_length 6, got 12"),
        (WaveNetConfig, dict(one_hot_input=True), "one_hot_input needs distribution 'softmax', got 'gaussian'"),
        (WaveNetConfig, dict(initial_class=1), "initial_class must be one of 65536 classes of a one-hot input"),
        (
            WaveNetConfig,
            dict(distribution="softmax", classes=8, one_hot_input=True, initial_class=8),
            "initial_class must be one of 8 classes of a one-hot input",
        ),
        (WaveNetConfig, dict(distribution="normal"), "distribution must be one of gaussian,"),
        (WaveNetConfig, dict(clamp=-1.0), "clamp must be positive, got -1.0"),
        (WaveNetConfig, dict(kernel_size=0), "kernel_size must be at least 1, got 0"),
        (WaveNetConfig, dict(upsample_freq_kernel=2), "freq_kernel must be odd, got 2"),
        (ClariNetStudentConfig, dict(flows=()), "flows must be one list of dilations or more, got none"),
        (ClariNetStudentConfig, dict(flows=[(1,), ()]), "skip_channels must be 0 in a stack without layers, got 6"),
        (ClariNetStudentConfig, dict(first_sample="one"), "first_sample must be 'net' or 'zero', got 'one'"),
        (
            ClariNetStudentConfig,
            dict(first_sample="zero", time_reversal=True),
            "first_sample must be 'net' with time_reversal, got 'zero'",
        ),
        (
            ClariNetStudentConfig,
            dict(upsample_scales=(5,)),
            "upsample_scales and cond_repeat must multiply to hop_length 6, got 5",
        ),
    ],
)
def test_config_errors(config, changes, message):
    values = STACK | dict(dilations=(1, 2)) if config is WaveNetConfig else FLOWS | dict(upsample_scales=(6,))
    with pytest.raises(ValueError) as error:
        config(**(values | changes))
    assert str(error.value).startswith(message)


def test_unknown_upsampler():
    with pytest.raises(ValueError, match="upsampler must be one of transposed, stretched, nearest, got 'cubic'"):
        WaveNet(WaveNetConfig(**(STACK | dict(dilations=(1,), upsampler="cubic"))))
