"""Checkpoints of ksw0306/ClariNet, before and after.

Before, in that project's own environment:

    model_t.load_state_dict(torch.load("teacher_ema.pth")["state_dict"])
    model_s.load_state_dict(torch.load("student_ema.pth")["state_dict"])
    y = model_t.generate(num_samples, c)                                 # (1, 1, num_samples), slowly
    y = model_s.generate(z, model_t.upsample(c))                         # (1, 1, samples)

After, in the same place, with the models that are already there:

    y = fastwave.accelerate(model_t).generate(num_samples, c)            # the same calls, on the kernels
    y = fastwave.accelerate(model_s).generate(z, model_t.upsample(c))

or without that project, as this file does; with a student too, the student speaks:

    python examples/ksw0306.py teacher_ema.pth speech.wav out.wav
    python examples/ksw0306.py teacher_ema.pth speech.wav out.wav --student student_ema.pth
"""

import argparse

import fastwave
from fastwave import audio


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="checkpoint")
    parser.add_argument("input", help="a recording, to be said again")
    parser.add_argument("output", help="WAV or FLAC")
    parser.add_argument("--student", help="checkpoint")
    parser.add_argument("--hparams", help="JSON, where the sizes are not the defaults of train.py")
    arguments = parser.parse_args()

    student, teacher = arguments.student, arguments.teacher
    checkpoint = {"student": student, "teacher": teacher} if student else teacher
    vocoder = fastwave.Vocoder(fastwave.convert(checkpoint, source="ksw0306/ClariNet", hparams=arguments.hparams))
    mel = vocoder.mel(audio.read(arguments.input, vocoder.sample_rate)[None])  # (1, bands, frames)
    audio.write(arguments.output, vocoder.generate(mel, seed=0)[0], vocoder.sample_rate)


if __name__ == "__main__":
    main()
