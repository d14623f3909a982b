"""Stand-ins for modules of public implementations: their class names, attributes and state-dict keys, and no more.

They compute nothing. accelerate() must know them by what they have, and their state dicts, filled with a golden's
weights or random ones, are what convert() meets.
"""

import math

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

# Arguments of the classes below, as small as can be.
SMALL = dict(
    out_channels=2,
    layers=2,
    stacks=1,
    residual_channels=3,
    gate_channels=4,
    skip_out_channels=5,
    kernel_size=2,
    cin_channels=6,
    gin_channels=-1,
    n_speakers=None,
    scalar_input=True,
    use_speaker_embedding=False,
    output_distribution="Normal",
    upsample_conditional_features=True,
    upsample_net="UpsampleNetwork",
    upsample_params={"upsample_scales": [2, 3], "cin_channels": 6},
)
SMALL_TEACHER = dict(num_blocks=1, num_layers=2, residual_channels=3, gate_channels=4, skip_channels=5, kernel_size=2)
SMALL_TEACHER |= dict(cin_channels=6, upsample_scales=[2, 4])
SMALL_STUDENT = dict(num_blocks_student=[1, 2], num_layers=2, residual_channels=3, gate_channels=4, skip_channels=5)
SMALL_STUDENT |= dict(kernel_size=3, cin_channels=6, front_channels=7)
SPEAKERS = dict(gin_channels=3, n_speakers=4, use_speaker_embedding=True)


def randomised(module, seed=0):
    """The module with random parameters; magnitudes of weight norm stay away from zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = values.abs() + 0.1 if name.endswith("original0") else values
    return module


# r9y9/wavenet_vocoder ------------------------------------------------------------------------------------------------


class ResidualConv1dGLU(nn.Module):
    def __init__(self, residual, gate, kernel, skip, cin, gin, dilation):
        super().__init__()
        padding = (kernel - 1) * dilation
        self.conv = weight_norm(nn.Conv1d(residual, gate, kernel, dilation=dilation, padding=padding))
        self.conv1x1c = weight_norm(nn.Conv1d(cin, gate, 1, bias=False))
        self.conv1x1g = weight_norm(nn.Conv1d(gin, gate, 1, bias=False)) if gin > 0 else None
        self.conv1x1_out = weight_norm(nn.Conv1d(gate // 2, residual, 1))
        self.conv1x1_skip = weight_norm(nn.Conv1d(gate // 2, skip, 1))


class UpsampleNetwork(nn.Module):
    def __init__(
        self,
        upsample_scales,
        cin_channels,
        cin_pad=0,
        freq_axis_kernel_size=1,
        upsample_activation="none",
        upsample_activation_params=None,
    ):
        super().__init__()
        self.indent = cin_pad * math.prod(upsample_scales)
        self.up_layers = nn.ModuleList()
        for scale in upsample_scales:
            kernel = (freq_axis_kernel_size, 2 * scale + 1)
            self.up_layers.append(nn.Identity())  # the repetition
            self.up_layers.append(weight_norm(nn.Conv2d(1, 1, kernel, bias=False)))
            if upsample_activation != "none":
                self.up_layers.append(getattr(nn, upsample_activation)(**upsample_activation_params or {}))


class ConvInUpsampleNetwork(nn.Module):
    def __init__(self, upsample_scales, cin_channels, cin_pad=0, **params):
        super().__init__()
        self.conv_in = nn.Conv1d(cin_channels, cin_channels, 2 * cin_pad + 1, bias=False)
        self.upsample = UpsampleNetwork(upsample_scales, cin_channels, 0, **params)


class WaveNet(nn.Module):
    """r9y9/wavenet_vocoder's; the arguments are those of its class."""

    def __init__(self, hparams):
        super().__init__()
        residual, gate, skip = (hparams[f"{name}_channels"] for name in ("residual", "gate", "skip_out"))
        layers, inputs = hparams["layers"], 1 if hparams["scalar_input"] else hparams["out_channels"]
        self.output_distribution = hparams["output_distribution"]
        self.first_conv = weight_norm(nn.Conv1d(inputs, residual, 1))
        self.conv_layers = nn.ModuleList(
            ResidualConv1dGLU(
                residual,
                gate,
                hparams["kernel_size"],
                skip,
                hparams["cin_channels"],
                hparams["gin_channels"],
                dilation=2 ** (i % (layers // hparams["stacks"])),
            )
            for i in range(layers)
        )
        convs = (weight_norm(nn.Conv1d(skip, outputs, 1)) for outputs in (skip, hparams["out_channels"]))
        self.last_conv_layers = nn.ModuleList(module for conv in convs for module in (nn.ReLU(), conv))
        speakers = hparams["gin_channels"] > 0 and hparams["use_speaker_embedding"]
        self.embed_speakers = nn.Embedding(hparams["n_speakers"], hparams["gin_channels"]) if speakers else None
        network = globals()[hparams["upsample_net"]]
        used = hparams["upsample_conditional_features"]
        self.upsample_net = network(**hparams["upsample_params"]) if used else None


# ksw0306/ClariNet ----------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    def __init__(self, inputs, outputs, kernel, dilation=1):
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(inputs, outputs, kernel, dilation=dilation))


class ResBlock(nn.Module):
    def __init__(self, residual, gate, skip, kernel, dilation, cin):
        super().__init__()
        self.filter_conv, self.gate_conv = (Conv(residual, gate, kernel, dilation) for _ in range(2))
        self.filter_conv_c, self.gate_conv_c = (weight_norm(nn.Conv1d(cin, gate, 1)) for _ in range(2))
        self.res_conv = weight_norm(nn.Conv1d(gate, residual, 1))
        self.skip_conv = weight_norm(nn.Conv1d(gate, skip, 1))


class Flow(nn.Module):
    def __init__(self, hparams, blocks, width, base):
        super().__init__()
        self.causal = hparams.get("causal", True)
        residual, gate, skip = (hparams[f"{name}_channels"] for name in ("residual", "gate", "skip"))
        kernel, cin = hparams["kernel_size"], hparams["cin_channels"]
        self.front_conv = nn.Sequential(Conv(1, residual, width), nn.ReLU())
        self.res_blocks = nn.ModuleList(
            ResBlock(residual, gate, skip, kernel, base**n, cin)
            for _ in range(blocks)
            for n in range(hparams["num_layers"])
        )
        self.final_conv = nn.Sequential(
            nn.ReLU(), Conv(skip, skip, 1), nn.ReLU(), Conv(skip, hparams.get("out_channels", 2), 1)
        )


class Wavenet(Flow):
    """ksw0306/ClariNet's teacher; the arguments are those of its class."""

    def __init__(self, hparams):
        super().__init__(hparams, hparams["num_blocks"], 32, hparams["kernel_size"])
        self.upsample_conv = nn.ModuleList()
        for s in hparams["upsample_scales"]:
            conv = nn.ConvTranspose2d(1, 1, (3, 2 * s), padding=(1, s // 2), stride=(1, s))
            self.upsample_conv.extend([weight_norm(conv), nn.LeakyReLU(0.4)])


class Wavenet_Student(nn.Module):
    """ksw0306/ClariNet's student; the arguments are those of its class."""

    def __init__(self, hparams):
        super().__init__()
        blocks = hparams["num_blocks_student"]
        self.iafs = nn.ModuleList(Flow(hparams, count, hparams["front_channels"], 2) for count in blocks)


# state dicts, small and random ---------------------------------------------------------------------------------------


def wavenet(**changes):
    return randomised(WaveNet(SMALL | changes)).state_dict()


def teacher(**changes):
    return randomised(Wavenet(SMALL_TEACHER | changes)).state_dict()


def student(**changes):
    return randomised(Wavenet_Student(SMALL_STUDENT | changes)).state_dict()


def pair(**changes):
    return {"student": student(), "teacher": teacher()} | changes
