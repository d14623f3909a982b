"""Makes the bundled utterance of examples/demo.py: the log-mel of a clip, which is all of it that is kept.

python examples/make_demo_mel.py LJ001-0030.flac --transcript "..." --out fastwave/voices/demo
"""

import argparse
import json
from pathlib import Path

import safetensors.torch

import fastwave
from fastwave import audio


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--transcript", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    vocoder = fastwave.load("lj")
    mel = vocoder.mel(audio.read(arguments.clip, vocoder.sample_rate)[None])[0]
    arguments.out.mkdir(parents=True, exist_ok=True)
    metadata = {"mel_spec": json.dumps(vocoder.mel_spec.to_dict())}
    (arguments.out / "mel.safetensors").write_bytes(safetensors.torch.save({"mel": mel}, metadata))
    description = {"clip": arguments.clip.stem, "transcript": arguments.transcript}
    (arguments.out / "demo.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
