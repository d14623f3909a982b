"""wavenet_sample against its float64 reference: every machine, boundary sizes, and the real models' sizes."""

import dataclasses
import importlib
import signal

import emulated_cuda
import pytest
import torch
from kernels import EMULATED, OPCHECKS, assert_close, in_float32, skip_on_cuda

from fastwave import Vocoder, models, noise
from fastwave.audio import MelSpec
from fastwave.models import WaveNetConfig
from fastwave.ops.custom import arguments, has_cuda
from fastwave.ops.rounding import DTYPES
from fastwave.ops.wavenet_sample import has_own_kernel, initial_sampler_state, wavenet_sample, wavenet_sample_ref
from fastwave.pack import pack_gated_stack

MEL = MelSpec(n_mels=7, hop_length=16, n_fft=64, win_length=64, sample_rate=8000, fmax=4000.0)
TINY = dict(
    mel=MEL,
    residual_channels=20,
    gate_channels=24,
    skip_channels=18,
    kernel_size=3,
    dilations=(1, 2, 4, 8, 16),
    upsample_scales=(16,),
    front_width=3,
)
HEADS = {
    "gaussian": {},
    "gaussian-repeat": dict(upsample_scales=(4,), cond_repeat=4),
    "gaussian-k2-far": dict(kernel_size=2, dilations=(64, 1, 7, 8, 9), front_width=32, front_relu=True),
    "mixture_of_gaussians": dict(distribution="mixture_of_gaussians", components=3),
    "mixture_of_logistics": dict(distribution="mixture_of_logistics", components=10),
    "softmax": dict(distribution="softmax", classes=40),
    "softmax-one-hot": dict(distribution="softmax", classes=40, one_hot_input=True, initial_class=19),
    "softmax-one-hot-relu": dict(distribution="softmax", classes=40, one_hot_input=True, front_relu=True),
}


def make_sampler(config, dtype="float32", machine=None):
    torch.manual_seed(1)
    model = models.WaveNet(config).eval().requires_grad_(False)
    reference = models.WaveNet(config).double().eval().requires_grad_(False)
    reference.load_state_dict(model.state_dict())
    table = model.distribution.decode_table() if config.distribution == "softmax" else None
    spec = model.stack.spec = reference.stack.spec = dataclasses.replace(model.stack.spec, dtype=dtype)
    weights = pack_gated_stack(model.stack.weights(), spec)

    device = "cuda" if machine == "cuda" else "cpu"

    def sample(z, c, state=None, **named):
        state = initial_sampler_state(spec, len(z), model.first_input()) if state is None else state
        tensors = dict(noise=z, weights=weights, c=c, table=table, state=state) | named
        there = {n: tensor.to(device) if torch.is_tensor(tensor) else tensor for n, tensor in tensors.items()}
        results = wavenet_sample(spec=spec, head=config.head_spec(), **there)
        state.copy_(there["state"])
        return tuple(result.cpu() for result in results)

    return model, reference, sample


@pytest.mark.parametrize("head", HEADS)
def test_wavenet_sample(machine, head):
    model, reference, sample = make_sampler(WaveNetConfig(**(TINY | HEADS[head])), machine=machine)
    batch, frames = 3, 2 if machine in EMULATED else 6
    mel = torch.rand(batch, 7, frames)
    z = noise.draw(model.noise_kinds, 5, batch, 0, frames * 16)
    c = model.upsampler(mel)
    for temperature in (1.0, 0.5, 0.0):
        free, parameters = sample(z, c, temperature=temperature, return_parameters=True)
        assert_close(
            free,
            model.generate(mel, noise=z, temperature=temperature),
            reference.generate(mel.double(), noise=z.double(), temperature=temperature),
        )
        # every parameter, on the path that was drawn
        assert_close(parameters, model(free, mel), reference(free.double(), mel.double()))
    forced, forced_parameters = sample(z, c, forced=free[:, :20], temperature=0.0, return_parameters=True)
    assert torch.equal(forced, free)
    assert torch.equal(forced_parameters, parameters)


def assert_parameters_close(parameters, model, reference, samples, mel):
    """Of a sampler in a dtype that rounds, on the path that was drawn."""
    rounded = reference(samples.double(), mel.double())
    reference.stack.spec = in_float32(reference.stack.spec)
    assert_close(parameters, model(samples, mel), rounded, reference(samples.double(), mel.double()))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("head", HEADS)
def test_wavenet_sample_in_less_precision(machine, head, dtype):
    skip_on_cuda(machine, dtype)
    model, reference, sample = make_sampler(WaveNetConfig(**(TINY | HEADS[head])), dtype, machine)
    mel = torch.rand(3, 7, 6)
    z = noise.draw(model.noise_kinds, 5, 3, 0, 6 * 16)
    free, parameters = sample(z, model.upsampler(mel), return_parameters=True)
    assert_parameters_close(parameters, model, reference, free, mel)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wavenet_sample_in_pieces_and_batches_is_the_same_to_the_bit(machine, dtype):
    skip_on_cuda(machine, dtype)
    config = WaveNetConfig(**(TINY | HEADS["gaussian-repeat"]))
    model, _, sample = make_sampler(config, dtype, machine)
    spec, batch, time = model.stack.spec, 11, 128
    z = torch.randn(batch, 1, time)
    c = torch.rand(batch, 7, time // 4)
    lengths = torch.tensor([time, 0, 5, 64, 100, 1, time, 3, 8, 16, 17])
    state = initial_sampler_state(spec, batch, model.first_input())
    whole, _ = sample(z, c, state=state, lengths=lengths, threads=2)
    for row, length in enumerate(lengths.tolist()):
        alone_state = initial_sampler_state(spec, 1, model.first_input())
        alone = [
            sample(
                z[row : row + 1, :, start:end],
                c[row : row + 1, :, start // 4 : start // 4 - (start - end) // 4],
                state=alone_state,
            )[0]
            for start, end in ((0, min(length, 12)), (min(length, 12), length))
        ]
        assert torch.equal(whole[row, :length], torch.cat(alone, 1)[0])
        assert not whole[row, length:].any()
        assert torch.equal(state[row], alone_state[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", ["gaussian", "gaussian-repeat", "gaussian-k2-far", "softmax-one-hot"])
def test_one_utterance_on_several_threads_is_the_same_to_the_bit(isa, head, dtype):
    model, _, sample = make_sampler(WaveNetConfig(**(TINY | HEADS[head])), dtype)
    z = noise.draw(model.noise_kinds, 5, 2, 0, 6 * 16)
    c = model.upsampler(torch.rand(2, 7, 6))
    alone, _ = sample(z, c)
    for threads in (3, 4, 9):
        assert torch.equal(sample(z, c, threads=threads)[0], alone)


# residual/gate channels that have kernels of their own, and some that have none; k, dilations and heads are free
FAST = {
    "64/64": dict(residual_channels=64, gate_channels=64, skip_channels=256, kernel_size=2),
    "64/128": dict(residual_channels=64, gate_channels=128, skip_channels=64, kernel_size=3),
    "128/128": dict(residual_channels=128, gate_channels=128, skip_channels=128, kernel_size=3),
    "128/256": dict(residual_channels=128, gate_channels=256, skip_channels=256, kernel_size=1),
}


@pytest.mark.parametrize(("hop", "sm"), [("cluster", 90), ("mailboxes", 80)])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", FAST)
@pytest.mark.parametrize("machine", ["emulated-sm90"], indirect=True)
def test_sampler_with_weights_in_registers(machine, size, dtype, rows, hop, sm):
    """Three layers in one block, if they fit: some are held in registers and some are not."""
    fits = size != "128/256"
    emulated_cuda.emulator.configure(sm=sm, sm_count=2 if fits else 4, seed=4)
    config = WaveNetConfig(**(TINY | FAST[size] | dict(dilations=(1, 4, 2))))
    model, reference, sample = make_sampler(config, dtype, machine)
    plan = emulated_cuda.cuda.wavenet_sample_plan(arguments(model.stack.spec), rows, 0)
    own = dtype == "bfloat16" or rows == 1
    if dtype == "float32" and size not in (("64/64", "64/128") if own else ("64/64",)):
        hop = "mailboxes"
    assert plan["kernel"] == (f"{hop} {size}" if own else hop)
    assert plan["stages"] == (2 if fits else 4)
    mel, z = torch.rand(rows, 7, 1), torch.randn(rows, 1, 16)
    free, parameters = sample(z, model.upsampler(mel), return_parameters=True)
    if dtype == "float32":
        assert_close(parameters, model(free, mel), reference(free.double(), mel.double()))
    else:
        assert_parameters_close(parameters, model, reference, free, mel)


@pytest.mark.parametrize("machine", ["cuda", "emulated-sm90", "emulated-sm80"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampler_of_forty_layers(machine, dtype):
    """Several to a block."""
    config = WaveNetConfig(**(TINY | dict(dilations=[2**i for i in range(10)] * 4)))
    model, reference, sample = make_sampler(config, dtype, machine)
    mel, z = torch.rand(1, 7, 2), torch.randn(1, 1, 32)
    free, parameters = sample(z, model.upsampler(mel), return_parameters=True)
    if dtype == "float32":
        assert_close(parameters, model(free, mel), reference(free.double(), mel.double()))
    else:
        assert_parameters_close(parameters, model, reference, free, mel)


@pytest.mark.parametrize("machine", EMULATED, indirect=True)
def test_sizes_with_a_kernel_of_their_own(machine, monkeypatch):
    monkeypatch.setattr(importlib.import_module("fastwave.ops.custom"), "_cuda", emulated_cuda.cuda)
    for size in FAST:
        spec = models.WaveNet(WaveNetConfig(**(TINY | FAST[size]))).stack.spec
        assert has_own_kernel(spec, torch.device("cuda"))
        half = dataclasses.replace(spec, dtype="bfloat16")
        assert has_own_kernel(half, torch.device("cuda")) == (machine != "emulated-sm75")
    assert not has_own_kernel(models.WaveNet(WaveNetConfig(**TINY)).stack.spec, torch.device("cuda"))


@pytest.mark.parametrize("machine", ["emulated-sm90"], indirect=True)
def test_what_does_not_fit_a_cluster_takes_mailboxes(machine):
    """On as many multiprocessors as an H200 has, whose clusters are 16 blocks: of 2 or 3 layers each, here."""
    emulated_cuda.emulator.configure(sm=90, sm_count=132, seed=4)

    def kernel(size: str, dtype: str, layers: int) -> tuple[str, int]:
        config = WaveNetConfig(**(TINY | FAST[size] | dict(dilations=(1,) * layers)))
        spec = dataclasses.replace(models.WaveNet(config).stack.spec, dtype=dtype)
        plan = emulated_cuda.cuda.wavenet_sample_plan(arguments(spec), 1, 0)
        return plan["kernel"], plan["stages"]

    assert kernel("128/128", "bfloat16", 20) == ("cluster 128/128", 11)
    assert kernel("128/128", "bfloat16", 40) == ("cluster 128/128", 15)
    assert kernel("128/256", "bfloat16", 15) == ("cluster 128/256", 16)
    assert kernel("128/256", "bfloat16", 20) == ("mailboxes 128/256", 21)
    assert kernel("64/64", "float32", 40) == ("cluster 64/64", 15)
    assert kernel("128/128", "float32", 20) == ("mailboxes 128/128", 21)


@pytest.mark.parametrize("machine", ["emulated-sm90", "emulated-sm80"], indirect=True)
def test_a_samplers_wait_in_vain_is_an_error(machine):
    """On a device whose clock runs fast, who has to wait gives up."""
    *_, sample = make_sampler(WaveNetConfig(**TINY), "bfloat16", machine)
    emulated_cuda.emulator.configure(sm=EMULATED[machine]["sm"], seed=1, nanoseconds_per_round=10**9)
    with pytest.raises(RuntimeError, match=r"wavenet_sample: block \d of a pipeline has waited 2 s for another one"):
        sample(torch.randn(1, 1, 16), torch.rand(1, 7, 16))


@pytest.mark.parametrize("machine", ["emulated-sm90"], indirect=True)
def test_ctrl_c_is_heard_between_launches(machine):
    *_, sample = make_sampler(WaveNetConfig(**TINY), machine=machine)
    z, c = torch.randn(1, 1, 10**6), torch.rand(1, 7, 10**6)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        sample(z, c)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("machine", ["emulated-sm90"], indirect=True)
@pytest.mark.parametrize("pipelines", [1, 2])
def test_groups_of_rows_under_way_together(machine, pipelines):
    """Three groups of 8 rows in one pipeline or two."""
    model, _, sample = make_sampler(WaveNetConfig(**TINY), "bfloat16", machine)
    emulated_cuda.emulator.configure(sm=80, sm_count=6 * pipelines, seed=5)
    plan = emulated_cuda.cuda.wavenet_sample_plan(arguments(model.stack.spec), 19, 0)
    assert (plan["stages"], plan["pipelines"]) == (6, pipelines)
    z, c = torch.randn(19, 1, 24), torch.rand(19, 7, 24)
    together, _ = sample(z, c)
    emulated_cuda.emulator.configure(sm=80, sm_count=6)
    for row in (0, 7, 8, 18):
        assert torch.equal(together[row], sample(z[row : row + 1], c[row : row + 1])[0][0])


def test_wavenet_sample_speaker_vectors(machine):
    config = WaveNetConfig(**TINY, speakers=4, speaker_channels=5)
    model, reference, sample = make_sampler(config, machine=machine)
    mel, z = torch.rand(2, 7, 3), torch.randn(2, 1, 48)
    speaker = torch.tensor([3, 1])
    free, _ = sample(z, model.upsampler(mel), g=model.global_vectors(speaker))
    assert_close(
        free,
        model.generate(mel, noise=z, speaker=speaker),
        reference.generate(mel.double(), noise=z.double(), speaker=speaker),
    )


R9Y9 = dict(
    mel=MelSpec.preset("r9y9/wavenet_vocoder"),
    residual_channels=128,
    gate_channels=128,
    skip_channels=128,
    kernel_size=3,
    upsampler="stretched",
    upsample_scales=(4, 4, 4, 4),
    upsample_freq_kernel=1,
    upsample_slope=1.0,
    upsample_context=2,
    upsample_context_conv=True,
)
FULL = {
    "clarinet-teacher": WaveNetConfig.clarinet(),
    "r9y9-mixture_of_logistics": WaveNetConfig(
        distribution="mixture_of_logistics", dilations=[2**i for i in range(6)] * 4, **R9Y9
    ),
    "r9y9-gaussian": WaveNetConfig(dilations=[2**i for i in range(6)] * 4, **R9Y9),
    "r9y9-softmax": WaveNetConfig(
        distribution="softmax",
        classes=256,
        one_hot_input=True,
        initial_class=127,
        dilations=[2**i for i in range(10)] * 3,
        **R9Y9,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FULL)
def test_wavenet_sample_at_full_size(machine, name, dtype):
    """Free-running over a prefix, then the parameters over everything, on the drawn path."""
    if machine in EMULATED:
        pytest.skip("too slow")
    skip_on_cuda(machine, dtype)
    config = FULL[name]
    model, reference, sample = make_sampler(config, dtype, machine)
    frames = 2
    mel = torch.rand(1, 80, frames + 2 * config.upsample_context)
    z = noise.draw(model.noise_kinds, 0, 1, 0, frames * config.mel.hop_length)
    c = model.upsampler(mel)
    free, parameters = sample(z, c, return_parameters=True)
    if dtype != "float32":
        assert_parameters_close(parameters, model, reference, free, mel)
        return
    assert_close(parameters, model(free, mel), reference(free.double(), mel.double()))
    prefix = 24
    named = dict(
        c=c[..., :prefix].double(),
        state=initial_sampler_state(model.stack.spec, 1, model.first_input().double(), dtype=torch.float64),
        table=model.distribution.decode_table().double() if config.distribution == "softmax" else None,
    )
    path, _ = wavenet_sample_ref(
        z[..., :prefix].double(), reference.stack.weights(), model.stack.spec, config.head_spec(), **named
    )
    torch.testing.assert_close(free[:, :prefix].double(), path, rtol=1e-5, atol=1e-5)


def test_reference_and_kernel_share_the_sampler_state(machine):
    """A generation may start on one and go on, on the other."""
    config = WaveNetConfig(**TINY)
    model, _, sample = make_sampler(config, machine=machine)
    spec = model.stack.spec
    z, c = torch.randn(2, 1, 64), torch.rand(2, 7, 64)
    whole, _ = sample(z, c)
    state = initial_sampler_state(spec, 2, model.first_input())
    head = config.head_spec()
    first, _ = wavenet_sample_ref(z[..., :20], model.stack.weights(), spec, head, state=state, c=c[..., :20])
    second, _ = sample(z[..., 20:], c[..., 20:], state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["gaussian-repeat", "softmax-one-hot"])
def test_vocoder_on_cuda(head):
    """The CPU's waveform, and a stream's chunks with the whole's bits."""
    if not (has_cuda() and torch.cuda.is_available()):
        pytest.skip("no CUDA device")
    model = models.WaveNet(WaveNetConfig(**(TINY | HEADS[head]))).requires_grad_(False)
    mel = torch.rand(2, 7, 40)
    with pytest.warns(UserWarning, match="cuda has no kernel for 20 residual and 24 gate channels"):
        vocoder = Vocoder(model, device="cuda")
    wave = vocoder.generate(mel, seed=1)
    torch.testing.assert_close(wave, Vocoder(model).generate(mel, seed=1), rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.cat(list(vocoder.stream(mel.split(7, 2), seed=1)), 1), wave)


def test_wavenet_sample_passes_opcheck():
    model, _, _ = make_sampler(WaveNetConfig(**TINY))
    spec = model.stack.spec
    tensors = (
        torch.randn(2, 1, 16),
        pack_gated_stack(model.stack.weights(), spec),
        torch.rand(2, 7, 16),
        None,
        None,
        None,
        None,
        initial_sampler_state(spec, 2),
    )
    keywords = dict(temperature=1.0, return_parameters=True, threads=1)
    keywords |= arguments(spec) | arguments(model.config.head_spec())
    torch.library.opcheck(torch.ops.fastwave.wavenet_sample.default, tensors, keywords, test_utils=OPCHECKS)
