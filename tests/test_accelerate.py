"""accelerate(): stand-ins for the peers' modules, with a golden's weights, against what the peers' calls returned."""

import copy
import inspect

import peers
import pytest
import torch
from golden import Golden
from peers import SMALL, SMALL_STUDENT, SMALL_TEACHER, SPEAKERS
from refusals import assert_refused
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import fastwave

TEACHER = "ksw0306_ClariNet__teacher_gaussian"
STUDENT = "ksw0306_ClariNet__student_iaf"
VOCODERS = ["gaussian_local", "mixgauss3_local", "mol10_local", "mol10_local_global", "mulaw256_local"]


def filled(module, golden):
    """The module with a golden's weights, whose old names of weight norm torch takes for its new ones."""
    module.load_state_dict(golden.state_dict())
    return module


def vocoder(name):
    golden = Golden(f"r9y9_wavenet_vocoder__{name}", torch.float32)
    return golden, filled(peers.WaveNet(golden.hparams), golden)


def teacher():
    golden = Golden(TEACHER, torch.float32)
    return golden, filled(peers.Wavenet(golden.hparams), golden)


def student():
    golden = Golden(STUDENT, torch.float32)
    return golden, filled(peers.Wavenet_Student(golden.hparams["student"]), golden)


def with_noise(fast, golden):
    """``fast``, drawing what the peer drew."""
    fast.noise = lambda batch, samples: golden.noise()[:batch, :, :samples]
    return fast


def inputs(golden, samples):
    """The peer's conditioning for so many samples, and its speakers."""
    params = golden.hparams.get("upsample_params", golden.hparams)
    hop = torch.tensor(params["upsample_scales"]).prod().item()
    batch = golden["out.ar"].shape[0] if "out.ar" in golden else 2
    frames = samples // hop + 2 * golden.hparams.get("cin_pad", 0)
    g = golden["in.g"][:batch] if "in.g" in golden else None
    return golden["in.c"][:batch, :, :frames], g


# goldens -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VOCODERS)
def test_incremental_forward(name):
    golden, module = vocoder(name)
    samples = 48 if name == "mulaw256_local" else golden["out.ar"].shape[2]
    c, g = inputs(golden, samples)
    out = with_noise(fastwave.accelerate(module), golden).incremental_forward(None, c=c, g=g, T=samples)
    if name == "mulaw256_local":
        assert torch.equal(out, F.one_hot(golden["out.ar_index"], 256).transpose(1, 2).float())
    else:
        golden.check(out, "ar")


@pytest.mark.parametrize("name", VOCODERS)
def test_teacher_forcing(name):
    """The path that was drawn, forced: each step draws the same again."""
    golden, module = vocoder(name)
    one_hot = name == "mulaw256_local"
    path = F.one_hot(golden["out.ar_index"], 256).transpose(1, 2).float() if one_hot else golden["out.ar"]
    first = torch.zeros_like(path[..., :1])
    if one_hot:
        first[:, 127] = 1
    c, g = inputs(golden, path.shape[2])
    fast = with_noise(fastwave.accelerate(module), golden)
    delayed = torch.cat([first, path[..., :-1]], 2)
    out = fast.incremental_forward(c=c, g=g, T=None, test_inputs=delayed)
    if one_hot:
        assert torch.equal(out, path)
        named = dict(c=c, T=0, test_inputs=delayed.transpose(1, 2), quantize=False)
        golden.check(fast.incremental_forward(**named, softmax=False), "ar_params")
        probabilities = golden["out.ar_params"].softmax(1)
        torch.testing.assert_close(fast.incremental_forward(**named), probabilities, rtol=1e-5, atol=1e-7)
    else:
        golden.check(out, "ar")
    # forced up to the middle, then free
    out = fast.incremental_forward(c=c, g=g, T=path.shape[2], test_inputs=delayed[..., : path.shape[2] // 2])
    assert torch.equal(out, path) if one_hot else golden.check(out, "ar") is None


def test_teacher_forced_steps_draw_from_what_they_read():
    golden, module = vocoder("gaussian_local")
    fast = fastwave.accelerate(module)
    x, c = golden["in.x"][..., :90], golden["in.c"][..., :6]
    noise = 50 * golden.noise()  # some draws leave [-1, 1]
    fast.noise = lambda batch, samples: noise
    mean, log_sigma = fast.model.network(x, fast.upsample(c)).unbind(1)
    drawn = (mean + log_sigma.exp() * noise[:, 0]).clamp(-1, 1)
    assert 0 < (drawn.abs() == 1).sum() < drawn.numel()
    out = fast.incremental_forward(c=c, T=90, test_inputs=x)
    torch.testing.assert_close(out[:, 0], drawn, rtol=0, atol=1e-5)


def test_initial_input():
    golden, module = vocoder("mulaw256_local")
    c, _ = inputs(golden, 48)
    fast = with_noise(fastwave.accelerate(module), golden)
    first = F.one_hot(torch.tensor([[127]]), 256).float()  # (1, 1, 256)
    expected = fast.incremental_forward(c=c, T=48)
    for shaped in (first, first.transpose(1, 2), first.expand(2, -1, -1)):
        assert torch.equal(fast.incremental_forward(shaped, c=c, T=48), expected)
    assert not torch.equal(fast.incremental_forward(first.flip(2), c=c, T=48), expected)

    golden, module = vocoder("gaussian_local")
    fast = with_noise(fastwave.accelerate(module), golden)
    c, _ = inputs(golden, 90)
    golden.check(fast.incremental_forward(torch.zeros(2, 1, 1), c=c, T=90), "ar")
    assert (fast.incremental_forward(torch.ones(2, 1, 1), c=c, T=90) - golden["out.ar"]).abs().max() > 1e-3


def test_speakers():
    golden, module = vocoder("mol10_local_global")
    c, g = inputs(golden, 96)
    fast = with_noise(fastwave.accelerate(module), golden)
    golden.check(fast.incremental_forward(c=c, g=g[:, None], T=96), "ar")
    other = (g + 1) % 4
    assert not torch.equal(fast.incremental_forward(c=c, g=other, T=96), fast.incremental_forward(c=c, g=g, T=96))

    vectors = module.embed_speakers.weight.detach()[g]
    module.embed_speakers = None  # takes vectors from outside, then
    fast = with_noise(fastwave.accelerate(module), golden)
    for shaped in (vectors, vectors[..., None]):
        golden.check(fast.incremental_forward(c=c, g=shaped, T=96), "ar")


def test_conditioning_at_the_sample_rate():
    """Without an upsampling network c has a column per sample."""
    golden, module = vocoder("mol10_local")
    c, _ = inputs(golden, 96)
    columns = fastwave.accelerate(module).upsample(c)
    module.upsample_net = None
    fast = with_noise(fastwave.accelerate(module), golden)
    golden.check(fast.incremental_forward(c=columns, T=96), "ar")


def test_teacher_generate():
    golden, module = teacher()
    fast = with_noise(fastwave.accelerate(module), golden)
    golden.check(fast.generate(96, golden["in.c"][:1, :, :6]), "ar")
    longer = fast.generate(96, golden["in.c"][:1])  # c may go on
    torch.testing.assert_close(longer[..., :80], golden["out.ar"][..., :80], rtol=0, atol=1e-6)


def test_student_generate():
    golden, module = student()
    golden.check(fastwave.accelerate(module).generate(golden["in.z"], golden["out.c_up"]), "generate")


# the peers' ways -----------------------------------------------------------------------------------------------------


def test_the_calls_are_the_peers():
    signature = inspect.signature(fastwave.accelerate(vocoder("gaussian_local")[1]).incremental_forward)
    defaults = {name: p.default for name, p in signature.parameters.items() if name != "tqdm"}
    assert list(signature.parameters) == (
        ["initial_input", "c", "g", "T", "test_inputs", "tqdm", "softmax", "quantize", "log_scale_min"]
    )
    assert list(defaults.values()) == [None, None, None, 100, None, True, True, -50.0]
    assert list(inspect.signature(fastwave.accelerate(teacher()[1]).generate).parameters) == ["num_samples", "c"]
    assert list(inspect.signature(fastwave.accelerate(student()[1]).generate).parameters) == ["z", "c_up"]


def test_a_class_derived_from_a_peers():
    class Mine(peers.Wavenet):
        pass

    fast = fastwave.accelerate(peers.randomised(Mine(SMALL_TEACHER)))
    assert fast.generate(8, torch.zeros(1, 6, 1)).shape == (1, 1, 8)


def test_noise_comes_from_torchs_generator():
    golden, module = vocoder("mol10_local")
    c, _ = inputs(golden, 96)
    fast = fastwave.accelerate(module)
    waves = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        waves.append(fast.incremental_forward(c=c, T=96))
    assert torch.equal(waves[0], waves[1]) and not torch.equal(waves[0], waves[2])
    assert not torch.equal(fast.incremental_forward(c=c, T=96), waves[2])
    noise = fast.noise(3, 2000)
    assert noise.shape == (3, 11, 2000) and 1e-5 <= noise.min() < 1e-3 and 1 - 1e-3 < noise.max() <= 1 - 1e-5
    noise = fastwave.accelerate(teacher()[1]).noise(3, 2000)
    assert noise.shape == (3, 1, 2000) and abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_progress_and_blocks(monkeypatch):
    golden, module = vocoder("mixgauss3_local")
    monkeypatch.setattr("fastwave.converters.live.BLOCK", 40)
    c, _ = inputs(golden, 96)
    seen = []

    def tqdm(blocks):
        for block in blocks:
            seen.append(block)
            yield block

    out = with_noise(fastwave.accelerate(module), golden).incremental_forward(c=c, T=96, tqdm=tqdm)
    golden.check(out, "ar")
    assert seen == [0, 40, 80]


# changed weights -----------------------------------------------------------------------------------------------------


def assert_follows(fast, module, call):
    """``fast`` answers as one that is made of the module as it is now."""
    torch.manual_seed(0)
    out = call(fast)
    torch.manual_seed(0)
    assert torch.equal(out, call(fastwave.accelerate(module)))
    return out


CHANGES = {
    "in-place": lambda p: p.mul_(1.5),
    "behind-autograd": lambda p: p.data.mul_(1.5),
    "replaced": lambda p: setattr(p, "data", p.data * 1.5),
    "one-value": lambda p: p.view(-1)[0].add_(1.0),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(change):
    golden, module = vocoder("gaussian_local")
    c = golden["in.c"]
    fast = fastwave.accelerate(module)

    def call(fast):
        return fast.incremental_forward(c=c, T=120)

    before = assert_follows(fast, module, call)
    model = fast.model
    assert torch.equal(assert_follows(fast, module, call), before) and fast.model is model  # nothing changed
    CHANGES[change](module.conv_layers[1].conv1x1_out.bias)
    assert not torch.equal(assert_follows(fast, module, call), before)


def test_other_weights_and_no_weight_norm():
    golden, module = teacher()
    fast = fastwave.accelerate(module)
    before = assert_follows(fast, module, lambda fast: fast.generate(64, golden["in.c"][:1]))
    for conv in module.modules():
        if parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight")
    plain = assert_follows(fast, module, lambda fast: fast.generate(64, golden["in.c"][:1]))
    torch.testing.assert_close(plain, before, rtol=0, atol=1e-5)
    other = copy.deepcopy(module)
    peers.randomised(other)
    module.load_state_dict(other.state_dict())
    assert not torch.equal(assert_follows(fast, module, lambda fast: fast.generate(64, golden["in.c"][:1])), plain)


def test_another_type_of_weights():
    golden, module = student()
    fast = fastwave.accelerate(module)
    golden.check(fast.generate(golden["in.z"], golden["out.c_up"]), "generate")
    golden.check(
        assert_follows(fast, module.double(), lambda f: f.generate(golden["in.z"], golden["out.c_up"])), "generate"
    )
    assert fast.generate(golden["in.z"].double(), golden["out.c_up"].double()).dtype == torch.float32


def test_weights_that_became_bad_are_refused():
    golden, module = student()
    fast = fastwave.accelerate(module)
    with torch.no_grad():
        module.iafs[0].front_conv[0].conv.bias[0] = float("nan")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"iafs\.0\.front_conv\.0\.conv\.bias must be finite"):
            fast.generate(golden["in.z"], golden["out.c_up"])


def test_parameters_keep_their_gradients():
    golden, module = vocoder("gaussian_local")
    c = golden["in.c"].clone().requires_grad_()
    out = fastwave.accelerate(module).incremental_forward(c=c, T=120)
    assert not out.requires_grad and not out.is_inference()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


# what is refused -----------------------------------------------------------------------------------------------------


def small(kind=peers.WaveNet, sizes=SMALL, **changes):
    return fastwave.accelerate(peers.randomised(kind(sizes | changes)))


class WaveNet(nn.Module):
    """Of the same name, and something else."""

    def __init__(self):
        super().__init__()
        self.first_conv = nn.Conv1d(1, 1, 1)


c = torch.zeros(2, 6, 2)
ONE_HOT = dict(scalar_input=False, out_channels=130, output_distribution="Logistic")
FORCED = torch.zeros(2, 1, 5)
REFUSED = {
    "unknown": (
        lambda: fastwave.accelerate(nn.Linear(1, 1)),
        "module must be ksw0306/ClariNet's Wavenet or ksw0306/ClariNet's Wavenet_Student or r9y9/wavenet_vocoder's"
        " WaveNet, got torch.nn.modules.linear.Linear",
    ),
    "of-the-same-name": (lambda: fastwave.accelerate(WaveNet()), "got test_accelerate.WaveNet"),
    "ours": (lambda: fastwave.accelerate(fastwave.load("lj-teacher").model), "got fastwave.models.wavenet.WaveNet"),
    "activation": (
        lambda: small(upsample_params=dict(SMALL["upsample_params"], upsample_activation="ELU")),
        "hparams upsample_activation must be the one that the tensors have room for",
    ),
    "not-causal": (
        lambda: small(peers.Wavenet, SMALL_TEACHER, causal=False),
        "hparams causal must be True, as in the tensors, got False",
    ),
    "no-c": (lambda: small().incremental_forward(T=12), "c must be (batch, 6, frames), got None"),
    "c": (lambda: small().incremental_forward(c=c[:, 1:], T=12), "c must be (batch, 6, frames), got (2, 5, 2)"),
    "c-context": (
        lambda: small(
            upsample_net="ConvInUpsampleNetwork", upsample_params=SMALL["upsample_params"] | {"cin_pad": 1}
        ).incremental_forward(c=c, T=12),
        "c must be (batch, 6, frames, more than 2), got (2, 6, 2)",
    ),
    "c-device": (lambda: small().incremental_forward(c=c.to("meta"), T=12), "c must be on cpu, got meta"),
    "T": (lambda: small().incremental_forward(c=c, T=13), "T must be 12, the samples of c, got 13"),
    "T-default": (lambda: small().incremental_forward(c=c), "T must be 12, the samples of c, got 100"),
    "test-inputs": (
        lambda: small().incremental_forward(c=c, T=12, test_inputs=FORCED[:, 0]),
        "test_inputs must be (2, 1, steps), got (2, 5)",
    ),
    "test-inputs-batch": (
        lambda: small().incremental_forward(c=c, T=12, test_inputs=FORCED.expand(2, 1, 5)[[0, 1, 1]]),
        "test_inputs must be (2, 1, steps), got (3, 1, 5)",
    ),
    "test-inputs-empty": (
        lambda: small().incremental_forward(c=c, T=12, test_inputs=FORCED[..., :0]),
        "test_inputs must be (2, 1, steps), got (2, 1, 0)",
    ),
    "not-one-hot": (
        lambda: small(**ONE_HOT).incremental_forward(c=c, T=12, test_inputs=torch.full((2, 130, 3), 0.5)),
        "test_inputs must be one-hot, got other values than a 1 among 0s",
    ),
    "initial-input": (
        lambda: small().incremental_forward(torch.zeros(2, 3, 1), c=c, T=12),
        "initial_input must be one step, got 3",
    ),
    "logits-drawn": (
        lambda: small(**ONE_HOT).incremental_forward(c=c, T=12, softmax=False),
        "softmax must be True with quantize, got False",
    ),
    "probabilities-fed-back": (
        lambda: small(**ONE_HOT).incremental_forward(c=c, T=12, quantize=False),
        "quantize must be True where test_inputs end before T, got False",
    ),
    "few-classes": (
        lambda: small(**ONE_HOT | {"out_channels": 100}).incremental_forward(c=c, T=12),
        "initial_input must be given to a model of 100 classes, got None",
    ),
    "no-speakers": (lambda: small().incremental_forward(c=c, T=12, g=torch.tensor([0, 1])), "speaker must be None"),
    "speaker": (
        lambda: small(**SPEAKERS).incremental_forward(c=c, T=12, g=torch.tensor([0, 4])),
        "speaker must be ids below 4, got [0, 4]",
    ),
    "speaker-count": (
        lambda: small(**SPEAKERS).incremental_forward(c=c, T=12, g=torch.tensor([0, 1, 2])),
        "g must be ids (2,) or vectors (2, 3), got (3,)",
    ),
    "speaker-width": (
        lambda: small(**SPEAKERS | {"use_speaker_embedding": False}).incremental_forward(c=c, T=12, g=torch.ones(2, 4)),
        "g must be ids (2,) or vectors (2, 3), got (2, 4)",
    ),
    "num-samples": (
        lambda: small(peers.Wavenet, SMALL_TEACHER).generate(17, c),
        "num_samples must be 1 to 16, the samples of c, got 17",
    ),
    "z": (
        lambda: small(peers.Wavenet_Student, SMALL_STUDENT).generate(torch.zeros(2, 5), c),
        "z must be (batch, 1, samples), got (2, 5)",
    ),
    "z-device": (
        lambda: small(peers.Wavenet_Student, SMALL_STUDENT).generate(torch.zeros(2, 1, 2, device="meta"), c),
        "z must be on cpu, got meta",
    ),
    "c-up": (
        lambda: small(peers.Wavenet_Student, SMALL_STUDENT).generate(torch.zeros(2, 1, 5), c),
        "c_up must be (2, 6, 5), got (2, 6, 2)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    assert_refused(*REFUSED[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_less_precision_is_near_and_another_waveform(dtype):
    golden, module = student()
    exact = fastwave.accelerate(module).generate(golden["in.z"], golden["out.c_up"])
    wave = fastwave.accelerate(module, dtype=dtype, threads=2).generate(golden["in.z"], golden["out.c_up"])
    assert 1e-4 < (wave - exact).norm() / exact.norm() < 0.1
    golden, module = teacher()
    torch.manual_seed(0)
    exact = fastwave.accelerate(module).generate(64, golden["in.c"])
    torch.manual_seed(0)
    wave = fastwave.accelerate(module, dtype=dtype).generate(64, golden["in.c"])
    assert 1e-4 < (wave - exact).norm() / exact.norm() < 0.1


def test_precision_and_threads_are_checked():
    _, module = student()
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, int8, got 'float16'"):
        fastwave.accelerate(module, dtype="float16")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        fastwave.accelerate(module, threads=0)
