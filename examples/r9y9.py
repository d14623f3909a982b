"""A checkpoint of r9y9/wavenet_vocoder, before and after.

Before, in that project's own environment, sample by sample in PyTorch:

    model = build_model()
    model.load_state_dict(torch.load("checkpoint_step001000000_ema.pth")["state_dict"])
    model.eval()
    y = model.incremental_forward(c=c, T=T)                              # (1, 1, T)

After, in the same place, with the model that is already there:

    y = fastwave.accelerate(model).incremental_forward(c=c, T=T)         # the same call, on the kernels

or without that project, as this file does:

    python examples/r9y9.py checkpoint_step001000000_ema.pth mol_wavenet.json ljspeech-00001-feats.npy out.wav
"""

import argparse

import numpy as np
import torch

import fastwave
from fastwave import audio


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of torch.save; the _ema one sounds better")
    parser.add_argument("hparams", help="the recipe's JSON file")
    parser.add_argument("features", help="a mel as the recipe's preprocessing writes it: (frames, bands), normalised")
    parser.add_argument("output", help="WAV or FLAC")
    arguments = parser.parse_args()

    model = fastwave.convert(arguments.checkpoint, source="r9y9/wavenet_vocoder", hparams=arguments.hparams)
    vocoder = fastwave.Vocoder(model)
    mel = torch.from_numpy(np.load(arguments.features)).T[None].float()  # (1, bands, frames)
    audio.write(arguments.output, vocoder.generate(mel, seed=0)[0], vocoder.sample_rate)


if __name__ == "__main__":
    main()
