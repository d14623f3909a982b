"""ksw0306/ClariNet: the teacher ``Wavenet``, and ``Wavenet_Student``, whose conditioning its teacher upsamples.

What differs from ours: filter and gate are convolutions of their own, as are their conditionings, which have biases;
front_channels is a kernel size; layer n of a block has dilation kernel_size ** n in a teacher, 2 ** n in a student; a
student's first sample is 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastwave.audio import MelSpec
from fastwave.converters.live import LiveStudent, LiveWaveNet
from fastwave.converters.state_dict import Checkpoint, Hparams, expand, make
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet, WaveNetConfig

__all__ = ["LIVE", "convert"]

NAME = "ksw0306/ClariNet"

STACK = {
    "front.*": "front_conv.0.conv.*",
    "conv.{i}.weight": "res_blocks.{i}.filter_conv.conv.weight | res_blocks.{i}.gate_conv.conv.weight",
    "conv.{i}.bias": "res_blocks.{i}.filter_conv.conv.bias + res_blocks.{i}.filter_conv_c.bias"
    " | res_blocks.{i}.gate_conv.conv.bias + res_blocks.{i}.gate_conv_c.bias",
    "cond.{i}.weight": "res_blocks.{i}.filter_conv_c.weight | res_blocks.{i}.gate_conv_c.weight",
    "residual.{i}.*": "res_blocks.{i}.res_conv.*",
    "skip.{i}.*": "res_blocks.{i}.skip_conv.*",
    "head.0.*": "final_conv.1.conv.*",
    "head.1.*": "final_conv.3.conv.*",
}
UPSAMPLER = "upsample_conv."  # a transposed convolution and a leaky ReLU in turn
SLOPE = 0.4  # of that leaky ReLU
BLOCK_LAYERS = 10  # num_layers, the layers of a block, by default in train.py and in both classes


def convert(checkpoint: Any, hparams: Hparams) -> WaveNet | ClariNetStudent:
    """A teacher; or of ``{"student": ..., "teacher": ...}`` the student, on its teacher's upsampler.

    hparams are the arguments of the peer's class, or ``{"student": ..., "teacher": ...}`` of those. The tensors tell
    them all but num_layers, where it is not 10.
    """
    if isinstance(checkpoint, Mapping) and set(checkpoint) == {"student", "teacher"}:
        if other := set(hparams.values) - {"student", "teacher"}:
            raise ValueError(f"hparams of a student must be under student and teacher, got {', '.join(sorted(other))}")
        student, teacher = (Checkpoint(checkpoint[name], name) for name in ("student", "teacher"))
        teacher.check_keys(upsample_table(teacher), partly=True)
        upsampler = upsampler_sizes(teacher, hparams.section("teacher"))
        model = build_student(student, hparams.section("student"), upsampler)
        teacher.load(model.upsampler, upsample_table(teacher))
        return model
    checkpoint = Checkpoint(checkpoint)
    if checkpoint.has("iafs."):
        needed = 'its teacher\'s upsampler: convert {"student": ..., "teacher": ...}'
        raise ValueError(f"{checkpoint.name} holds a student, which needs {needed}")
    return build_teacher(checkpoint, hparams)


def build_teacher(checkpoint: Checkpoint, hparams: Hparams, dilations: Sequence[int] | None = None) -> WaveNet:
    """``dilations`` are a live module's; without them they follow from num_layers."""
    layers = checkpoint.count("res_blocks.")
    table = expand(STACK, layers, ours="stack.") | upsample_table(checkpoint, ours="upsampler.")
    checkpoint.check_keys(table)
    upsampler = upsampler_sizes(checkpoint, hparams)
    sizes = stack_sizes(checkpoint, hparams, upsampler)
    if dilations is None:
        blocks = count_blocks(layers, hparams)
        hparams.check(num_blocks=blocks)
        dilations = [sizes["kernel_size"] ** n for n in range(layers // blocks)] * blocks
    out_channels = checkpoint.shape("final_conv.3.conv.weight", 3)[0]
    hparams.check(out_channels=out_channels)
    if out_channels != 2:
        raise ValueError(f"out_channels must be 2, a Gaussian's, got {out_channels} in the tensors")
    model = make(WaveNet, WaveNetConfig(dilations=dilations, front_relu=True, **sizes))
    checkpoint.load(model, table)
    return model


def build_student(
    checkpoint: Checkpoint, hparams: Hparams, upsampler: dict, dilations: Sequence[Sequence[int]] | None = None
) -> ClariNetStudent:
    """A student, whose upsampler has the sizes of ``upsampler``, and no weights yet."""
    layers = [checkpoint.count(f"iafs.{i}.res_blocks.") for i in range(checkpoint.count("iafs."))]
    table = {}
    for i, count in enumerate(layers):
        table |= expand(STACK, count, ours=f"{i}.", theirs=f"iafs.{i}.")
    checkpoint.check_keys(table)
    sizes = stack_sizes(checkpoint, hparams, upsampler, "iafs.0.")
    if dilations is None:
        blocks = [count_blocks(count, hparams) for count in layers]
        hparams.check(num_blocks_student=blocks)
        dilations = [[2**n for n in range(count // b)] * b for count, b in zip(layers, blocks, strict=True)]
    model = make(ClariNetStudent, ClariNetStudentConfig(flows=dilations, first_sample="zero", **sizes))
    checkpoint.load(model.flows, table)
    return model


def stack_sizes(checkpoint: Checkpoint, hparams: Hparams, upsampler: dict, prefix: str = "") -> dict:
    """Sizes of a model, from its ``upsampler`` and the stack whose keys begin with ``prefix``."""
    gates, residual, kernel = checkpoint.shape(f"{prefix}res_blocks.0.filter_conv.conv.weight", 3)
    skip, _, _ = checkpoint.shape(f"{prefix}res_blocks.0.skip_conv.weight", 3)
    _, bands, _ = checkpoint.shape(f"{prefix}res_blocks.0.filter_conv_c.weight", 3)
    _, _, width = checkpoint.shape(f"{prefix}front_conv.0.conv.weight", 3)
    sizes = dict(residual_channels=residual, gate_channels=gates, skip_channels=skip, kernel_size=kernel)
    hparams.check(**sizes, cin_channels=bands, front_channels=width, causal=True)
    hop = math.prod(upsampler["upsample_scales"])
    mel = dataclasses.replace(MelSpec.preset(NAME), n_mels=bands, hop_length=hop)  # the peer's, which has no settings
    return sizes | upsampler | dict(front_width=width, mel=mel)


def count_blocks(layers: int, hparams: Hparams) -> int:
    """How many blocks of num_layers there are."""
    block = hparams.get("num_layers", BLOCK_LAYERS)
    if block < 1 or layers % block:
        raise ValueError(f"hparams num_layers must divide the {layers} layers of the tensors, got {block}")
    return layers // block


def upsample_table(checkpoint: Checkpoint, ours: str = "") -> dict[str, str]:
    indices = checkpoint.indices(UPSAMPLER) or [0]
    return expand({f"stages.{stage}.*": f"{UPSAMPLER}{index}.*" for stage, index in enumerate(indices)}, ours=ours)


def upsampler_sizes(checkpoint: Checkpoint, hparams: Hparams) -> dict:
    """A teacher's upsampler."""
    shapes = [checkpoint.shape(f"{UPSAMPLER}{index}.weight", 4) for index in checkpoint.indices(UPSAMPLER)]
    scales = [shape[3] // 2 for shape in shapes]
    hparams.check(upsample_scales=scales)
    if any(scale % 2 for scale in scales):  # the peer's stage then makes one column more than it has place for
        raise ValueError(f"upsample_scales must be even, got {scales} in the tensors")
    return dict(
        upsampler="transposed",
        upsample_scales=scales,
        upsample_freq_kernel=shapes[0][2],
        upsample_slope=SLOPE,
    )


class LiveTeacher(LiveWaveNet):
    """``Wavenet`` of ksw0306/ClariNet.

    The peer's method computes a window of ``receptive_field_size()`` samples anew for each sample, which assumes
    dilations 2 ** n: with a kernel_size other than 2 that window is not what the network sees. Here it always is.
    """

    class_name = "Wavenet"
    keys = ("front_conv.0.conv.", "res_blocks.0.filter_conv.", "upsample_conv.0.")

    def build(self) -> WaveNet:
        dilations = [block.filter_conv.conv.dilation[0] for block in self.module.res_blocks]
        hparams = Hparams({"causal": self.module.causal})
        return build_teacher(Checkpoint(self.module.state_dict()), hparams, dilations)

    @torch.no_grad()
    def generate(self, num_samples: int, c: Tensor | None = None) -> Tensor:
        """Samples (batch, 1, num_samples) from mels c (batch, cin_channels, frames), whose columns may be more.

        Raises:
            ValueError: c has another shape, or frames for fewer samples.
        """
        self.refresh()
        columns = self.upsample(c)
        if not 1 <= num_samples <= columns.shape[2]:
            raise ValueError(f"num_samples must be 1 to {columns.shape[2]}, the samples of c, got {num_samples}")
        noise = self.noise(len(columns), num_samples)
        return self.sample(noise, columns[..., :num_samples], first=torch.zeros(1, 1))[0][:, None]


class LiveClariNet(LiveStudent):
    """``Wavenet_Student`` of ksw0306/ClariNet."""

    class_name = "Wavenet_Student"
    keys = ("iafs.0.front_conv.0.conv.", "iafs.0.res_blocks.0.filter_conv.")

    def build(self) -> ClariNetStudent:
        flows = [[block.filter_conv.conv.dilation[0] for block in flow.res_blocks] for flow in self.module.iafs]
        hparams = Hparams({"causal": self.module.iafs[0].causal})
        none = dict(upsampler="nearest", upsample_scales=())
        return build_student(Checkpoint(self.module.state_dict()), hparams, none, flows)

    @torch.no_grad()
    def generate(self, z: Tensor, c_up: Tensor) -> Tensor:
        """A waveform like z (batch, 1, samples), standard normal noise, under c_up (batch, cin_channels, samples).

        c_up is what the teacher's own ``upsample`` makes of a mel.

        Raises:
            ValueError: a tensor of another shape.
        """
        self.refresh()
        if z.ndim != 3 or z.shape[1] != 1:
            raise ValueError(f"z must be (batch, 1, samples), got {tuple(z.shape)}")
        expected = (len(z), self.model.config.mel.n_mels, z.shape[2])
        if c_up.shape != expected:
            raise ValueError(f"c_up must be {expected}, got {tuple(c_up.shape)}")
        return self.transform(z, c_up)


LIVE = (LiveTeacher, LiveClariNet)
