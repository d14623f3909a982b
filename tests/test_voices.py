"""The bundled voices, heard: a test clip, through the command, compared with the recording."""

from pathlib import Path

import pytest
import torch

import fastwave
from fastwave import audio, cli
from fastwave.evaluate import stoi
from fastwave.vocoder import find_voice

LJ = Path(__file__).parents[2] / "shared" / "data" / "lj"


def test_bundled_voices_give_finite_samples():
    assert {"lj-stft", "lj-student", "lj-teacher"} <= set(fastwave.voices())
    for name in fastwave.voices():
        vocoder = fastwave.load(name)
        wave = vocoder.generate(torch.full((1, vocoder.mel_spec.n_mels, 3), 0.5))
        assert wave.shape == (1, 3 * vocoder.hop_length)
        assert torch.isfinite(wave).all()
        assert sum(file.stat().st_size for file in find_voice(name).glob("*.safetensors")) <= 6e6


@pytest.mark.skipif(not LJ.is_dir(), reason="needs the clips of LJ Speech beside the repository")
@pytest.mark.parametrize(("voice", "least"), [("lj-stft", 0.85), ("lj-student", 0.93), ("lj-teacher", 0.94)])
def test_intelligibility(voice, least, tmp_path):
    clip, out = LJ / "LJ001-0030.flac", tmp_path / "out.wav"
    assert cli.main(["vocode", str(clip), "-o", str(out), "--voice", voice, "-q"]) == 0
    rate = fastwave.load(voice).sample_rate
    recording, speech = audio.read(clip, rate), audio.read(out, rate)
    assert stoi(recording, speech[: len(recording)], rate) >= least
