"""Vocoder: the reference's waveform, streaming to the bit, ragged batches, seeds, bounded memory, interruption."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastwave
from fastwave import models
from fastwave.audio import MelSpec
from fastwave.emphasis import Emphasis
from fastwave.models import ClariNetStudentConfig, WaveNetConfig
from fastwave.threads import choose_threads

MEL = MelSpec(n_mels=6, hop_length=16, n_fft=64, win_length=64, sample_rate=8000, fmax=4000.0)
STACK = dict(mel=MEL, residual_channels=12, gate_channels=12, skip_channels=12, kernel_size=3)
WAVENET = dict(STACK, dilations=(1, 2, 4, 8))
STUDENT = dict(STACK, flows=((1, 2, 4), (1, 2, 8)), front_width=5)
CONFIGS = {
    "gaussian": WaveNetConfig(**WAVENET, upsample_scales=(4, 4)),
    "repeat": WaveNetConfig(**WAVENET, upsample_scales=(4,), cond_repeat=4),
    "logistics-context": WaveNetConfig(
        **WAVENET,
        distribution="mixture_of_logistics",
        upsampler="stretched",
        upsample_scales=(2, 8),
        upsample_context=2,
        upsample_context_conv=True,
    ),
    "softmax-trimmed": WaveNetConfig(
        **WAVENET, distribution="softmax", classes=32, one_hot_input=True, upsample_scales=(16,), upsample_context=1
    ),
    "student": ClariNetStudentConfig(**STUDENT, upsample_scales=(4, 4)),
    "student-context": ClariNetStudentConfig(
        **STUDENT, upsample_scales=(4,), cond_repeat=4, upsample_context=2, upsample_context_conv=True
    ),
    "student-zero": ClariNetStudentConfig(**STUDENT, upsample_scales=(16,), first_sample="zero"),
    "student-reversed": ClariNetStudentConfig(**STUDENT, upsample_scales=(16,), time_reversal=True),
    "gaussian-emphasis": WaveNetConfig(**WAVENET, upsample_scales=(16,), emphasis=Emphasis(coefficient=0.9, gain=4.0)),
    "student-emphasis": ClariNetStudentConfig(
        **STUDENT, upsample_scales=(16,), emphasis=Emphasis(coefficient=0.97, gain=20.0)
    ),
}


def make_model(name):
    torch.manual_seed(3)
    kind = models.WaveNet if isinstance(CONFIGS[name], WaveNetConfig) else models.ClariNetStudent
    model = kind(CONFIGS[name]).eval().requires_grad_(False)
    for parameter in model.parameters():  # every parameter counts
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


VOCODERS = {name: fastwave.Vocoder(make_model(name), threads=2) for name in CONFIGS}
for name in ("gaussian", "student-context"):
    for dtype in ("bfloat16", "int8"):
        VOCODERS[f"{name}-{dtype}"] = fastwave.Vocoder(make_model(name), dtype=dtype, threads=2)
STREAMING = [name for name in VOCODERS if name != "student-reversed"]


@pytest.mark.parametrize("name", CONFIGS)
def test_generate_is_the_reference(name):
    model, vocoder = make_model(name), VOCODERS[name]
    mel = torch.rand(3, 6, 37)  # more than one block
    wave = vocoder.generate(mel, seed=4)
    torch.testing.assert_close(wave, model.generate(mel, seed=4), rtol=1e-4, atol=2e-5)
    noise = model.noise(mel, None, 4)
    assert torch.equal(wave, vocoder.generate(mel, noise=noise))
    assert not torch.equal(wave, vocoder.generate(mel, seed=5))
    cool = vocoder.generate(mel, seed=4, temperature=0.5)
    torch.testing.assert_close(cool, model.generate(mel, seed=4, temperature=0.5), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", STREAMING)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), batch=st.integers(1, 2))
def test_stream_is_generate_to_the_bit(name, sizes, batch):
    vocoder = VOCODERS[name]
    mel = torch.rand(batch, 6, sum(sizes), generator=torch.Generator().manual_seed(len(sizes)))
    chunks = list(vocoder.stream(torch.split(mel, sizes, 2), seed=7))
    assert torch.equal(torch.cat(chunks, 1), vocoder.generate(mel, seed=7))


@pytest.mark.parametrize("name", STREAMING)
def test_stream_comes_as_soon_as_it_can(name):
    vocoder = VOCODERS[name]
    lag = vocoder.model.upsampler.spec.reach
    given_frames = 0

    def frames():
        nonlocal given_frames
        for frame in torch.rand(1, 6, 12).split(1, 2):
            given_frames += 1
            yield frame

    made = 0
    for chunk in vocoder.stream(frames()):
        made += chunk.shape[1] // vocoder.hop_length
        assert made == given_frames - lag or given_frames == 12
    assert made == 12


@pytest.mark.parametrize("name", VOCODERS)
def test_ragged_rows_are_the_rows_alone(name):
    vocoder = VOCODERS[name]
    mel = torch.rand(4, 6, 40)
    lengths = torch.tensor([40, 1, 17, 33])
    together = vocoder.generate(mel, seed=2, lengths=lengths)
    mel[1, :, 1:] = 9.0  # what stands in the padding does not matter
    assert torch.equal(together, vocoder.generate(mel, seed=2, lengths=lengths))
    noise = vocoder.model.noise(mel, None, 2)
    for row, frames in enumerate(lengths.tolist()):
        samples = frames * vocoder.hop_length
        alone = vocoder.generate(mel[row : row + 1, :, :frames], noise=noise[row : row + 1, :, :samples])
        torch.testing.assert_close(together[row, :samples], alone[0], rtol=1e-6, atol=1e-6)
        assert not together[row, samples:].any()


def test_a_seed_is_one_waveform_whatever_the_batch():
    vocoder, mel = VOCODERS["gaussian"], torch.rand(3, 6, 20)
    assert torch.equal(vocoder.generate(mel, seed=1)[:1], vocoder.generate(mel[:1], seed=1))


def test_threads_are_as_many_as_there_is_work_for(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    teacher = WaveNetConfig.clarinet().stack_spec()  # 128 KiB of float32 weights a product
    for dtype, one_row in (("float32", 8), ("bfloat16", 4), ("int8", 2)):
        spec = dataclasses.replace(teacher, dtype=dtype)
        assert choose_threads(None, 1, spec, sampling=True) == one_row
        assert choose_threads(None, 3, spec, sampling=True) == min(8, 3 * one_row)
        assert choose_threads(3, 1, spec, sampling=True) == 3
    assert choose_threads(None, 0, teacher, sampling=True) == 1
    student = ClariNetStudentConfig.student_1().stack_specs()[0]
    assert choose_threads(None, 1, student, sampling=False) == 3
    assert choose_threads(None, 1, CONFIGS["student"].stack_specs()[0], sampling=False) == 1


def test_threads_do_not_change_a_bit():
    model, mel = make_model("gaussian"), torch.rand(5, 6, 20)
    waves = [fastwave.Vocoder(model, threads=threads).generate(mel) for threads in (1, 2, 4)]
    assert torch.equal(waves[0], waves[1])
    assert torch.equal(waves[0], waves[2])


def test_a_dtype_changes_the_waveform_a_little():
    model, mel = make_model("student"), torch.rand(1, 6, 20)
    exact = fastwave.Vocoder(model).generate(mel)
    for dtype, bound in ((torch.bfloat16, 0.01), ("int8", 0.03)):
        wave = fastwave.Vocoder(model, dtype=dtype).generate(mel)
        error = (wave - exact).norm() / exact.norm()
        assert 1e-4 < error < bound


def test_a_vocoder_is_frozen():
    model, mel = make_model("gaussian"), torch.rand(1, 6, 5)
    vocoder = fastwave.Vocoder(model)
    before = vocoder.generate(mel)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(before, vocoder.generate(mel))


def test_speaker_embeddings():
    model = models.WaveNet(WaveNetConfig(**WAVENET, upsample_scales=(16,), speakers=3, speaker_channels=4))
    vocoder, mel, ids = fastwave.Vocoder(model), torch.rand(2, 6, 4), torch.tensor([2, 0])
    wave = vocoder.generate(mel, speaker=ids)
    torch.testing.assert_close(wave, model.generate(mel, speaker=ids), rtol=1e-4, atol=1e-5)
    embedding = model.speakers(ids).detach()[..., None]
    assert torch.equal(wave, vocoder.generate(mel, speaker=embedding))
    assert torch.equal(wave, torch.cat(list(vocoder.stream(mel.split(1, 2), speaker=ids)), 1))


def test_memory_of_a_stream_does_not_grow():
    script = """
        import resource, torch, fastwave
        from tests.test_vocoder import VOCODERS
        vocoder = VOCODERS["student"]
        peaks = []
        def frames(n):
            for _ in range(n):
                yield torch.rand(1, 6, 64)
        for n in (40, 400):
            for _ in vocoder.stream(frames(n)):
                pass
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        assert peaks[1] - peaks[0] < 8 * 1024, peaks  # KiB; the waveform alone would be 1.6 MB, its columns 38 MB
    """
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120, cwd=root)


def test_ctrl_c_stops_a_generation_within_a_quarter_of_a_second():
    script = """
        import signal, torch, fastwave
        from fastwave.models import WaveNet, WaveNetConfig
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell may have had it ignored
        vocoder = fastwave.Vocoder(WaveNet(WaveNetConfig.clarinet()), threads=1)
        print("ready", flush=True)
        try:
            vocoder.generate(torch.rand(1, 80, 32))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(tuple(vocoder.generate(torch.rand(1, 80, 1)).shape))  # and is still alive
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - started < 0.25 + 0.25  # and what a busy machine adds
        out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("(1, 300)\n", "", 0)
