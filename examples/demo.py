"""Vocodes the bundled utterance, and a recording of yours, and draws what went in beside what came out.

python examples/demo.py                    writes demo.wav and demo.png
python examples/demo.py --input mine.wav   writes mine-vocoded.wav and mine-vocoded.png as well
"""

import argparse
import json
import sys
import time
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

import fastwave
from fastwave import audio
from fastwave.cli import load_mel

UTTERANCE = Path(fastwave.__file__).parent / "voices" / "demo"


def vocode(vocoder, mel, path):
    """mel (n_mels, frames) -> speech (samples,), written to ``path`` with a line on how fast it was made."""
    started = time.perf_counter()
    wave = vocoder.generate(mel[None])[0]
    rate = len(wave) / (time.perf_counter() - started)
    audio.write(path, wave, vocoder.sample_rate)
    print(f"{path}: {rate:,.0f} samples/s, real-time factor {rate / vocoder.sample_rate:.2f} (above 1 is faster)")
    return wave


def draw(path, vocoder, wave_in, mel_in, wave_out, transcript):
    """Waveforms above log-mels, input on the left, output on the right; ``wave_in`` is None where only a mel is."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    norm = Normalize(mel_in.min().item(), mel_in.max().item())  # one range of colours for both mels
    columns = (("input", wave_in, mel_in), ("output", wave_out, vocoder.mel(wave_out[None])[0]))
    for (above, below), (title, wave, mel) in zip(axes.T, columns, strict=True):
        if wave is None:
            above.text(0.5, 0.5, fill(transcript, 60), transform=above.transAxes, ha="center", va="center")
        else:
            above.plot(np.arange(len(wave)) / vocoder.sample_rate, wave.numpy(), linewidth=0.3)
        above.set_title(title if wave is not None else f"{title}: a mel")
        seconds = mel.shape[1] * vocoder.hop_length / vocoder.sample_rate
        below.imshow(mel.numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, len(mel)), norm=norm)
        below.set_xlabel("seconds")
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("mel band")
    figure.savefig(path, dpi=100)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="a WAV or FLAC file")
    arguments = parser.parse_args()

    vocoder = fastwave.load("lj")
    transcript = json.loads((UTTERANCE / "demo.json").read_text(encoding="utf-8"))["transcript"]
    mel = load_mel(UTTERANCE / "mel.safetensors", vocoder.mel_spec)
    print(f"utterance: {transcript}")
    wave = vocode(vocoder, mel, "demo.wav")
    draw("demo.png", vocoder, None, mel, wave, transcript)

    if arguments.input:
        try:
            recording = audio.read(arguments.input, vocoder.sample_rate)
            mel = vocoder.mel(recording[None])[0]
        except (OSError, ValueError) as error:
            sys.exit(f"demo.py: error: {error}")
        stem = f"{arguments.input.stem}-vocoded"
        wave = vocode(vocoder, mel, f"{stem}.wav")
        draw(f"{stem}.png", vocoder, recording, mel, wave, "")


if __name__ == "__main__":
    main()
