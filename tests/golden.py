"""Goldens: what public implementations computed with small random weights, and those weights as the ops take them.

Each file of tests/data holds a peer's state dict (``sd.``), inputs (``in.``) and float32 outputs (``out.``); its
metadata holds the hyper-parameters, the commit, and how far the same code in float64 moved each output: what rounding
is worth there.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from fastwave.layers import Upsampler
from fastwave.ops.gated_stack import GatedStackSpec, GatedStackWeights
from fastwave.ops.upsample import UpsampleSpec

DATA = Path(__file__).parent / "data"


class Golden:
    """One file: ``g["in.x"]``, ``g["sd.key"]`` in ``dtype``; ``g.weight(key)`` and ``g.bias(key)`` of a convolution."""

    def __init__(self, name, dtype=torch.float64):
        with safe_open(DATA / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        self.name, self.dtype = name, dtype
        self.tensors = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
        config = json.loads(metadata["config"])
        self.hparams = config.get("hparams", config)
        self.rounding = {key: value["max_abs_diff"] for key, value in config.get("f32_vs_f64", {}).items()}
        for key, (difference, _) in json.loads(metadata.get("fp64_max_abs_diff_and_absmax", "{}")).items():
            self.rounding[key.removeprefix("out.")] = difference

    def __getitem__(self, key):
        return self.tensors[key]

    def __contains__(self, key):
        return key in self.tensors

    def weight(self, key):
        """A convolution's weight, its weight norm folded (dim 0)."""
        if f"sd.{key}.weight" in self.tensors:
            return self.tensors[f"sd.{key}.weight"]
        g, v = self.tensors[f"sd.{key}.weight_g"], self.tensors[f"sd.{key}.weight_v"]
        return v * (g / v.flatten(1).norm(dim=1).view_as(g))

    def bias(self, key):
        return self.tensors[f"sd.{key}.bias"]

    def matrix(self, key):
        """The weight of a 1x1 convolution, (out, in)."""
        return self.weight(key).flatten(1)

    def check(self, result, name):
        """``result`` is the peer's output: within 1.5 times its own rounding in float64, 10 times in float32."""
        expected = self[f"out.{name}"]
        assert result.shape == expected.shape and result.dtype == self.dtype
        assert result.isfinite().all()
        error = (result - expected).abs().max().item()
        bound = self.rounding[name] * (1.5 if self.dtype == torch.float64 else 10)
        assert error <= bound, f"{self.name} {name}: off by {error:.1e}, bound {bound:.1e}"


def ksw0306_stack(golden, flow="", *, width, kernel_size, dilations, **shape):
    """A Wavenet of ksw0306/ClariNet: a teacher, or a flow of a student ("iafs.0.")."""
    blocks = [f"{flow}res_blocks.{i}." for i in range(len(dilations))]
    layers = {
        "conv": [torch.cat([golden.weight(b + half + "_conv.conv") for half in ("filter", "gate")]) for b in blocks],
        "cond": [torch.cat([golden.matrix(b + half + "_conv_c") for half in ("filter", "gate")]) for b in blocks],
        "conv_bias": [
            torch.cat(
                [
                    golden.bias(b + half + "_conv.conv") + golden.bias(b + half + "_conv_c")
                    for half in ("filter", "gate")
                ]
            )
            for b in blocks
        ],
        "residual": [golden.matrix(b + "res_conv") for b in blocks],
        "residual_bias": [golden.bias(b + "res_conv") for b in blocks],
        "skip": [golden.matrix(b + "skip_conv") for b in blocks],
        "skip_bias": [golden.bias(b + "skip_conv") for b in blocks],
    }
    head = [f"{flow}final_conv.{i}.conv" for i in (1, 3)]
    weights = GatedStackWeights(
        front=golden.weight(f"{flow}front_conv.0.conv"),
        front_bias=golden.bias(f"{flow}front_conv.0.conv"),
        head=[golden.matrix(key) for key in head],
        head_bias=[golden.bias(key) for key in head],
        **layers,
    )
    skip_channels, gate_channels = layers["skip"][0].shape
    spec = GatedStackSpec(
        front_width=width,
        front_relu=True,
        residual_channels=len(weights.front),
        gate_channels=gate_channels,
        skip_channels=skip_channels,
        kernel_size=kernel_size,
        dilations=dilations,
        cond_channels=layers["cond"][0].shape[1],
        head_channels=[len(w) for w in weights.head],
        head_relu=(True, True),
        **shape,
    )
    return spec, weights


def diffwave_stack(golden):
    """DiffWave's network without its step embedding (that is the op's u) and its upsampler."""
    hparams = golden.hparams
    layers, channels = hparams["residual_layers"], hparams["residual_channels"]
    blocks = [f"residual_layers.{i}." for i in range(layers)]

    def filter_first(rows):
        return rows.roll(channels, 0)  # the peer has the gate half first

    weights = GatedStackWeights(
        front=golden.weight("input_projection"),
        front_bias=golden.bias("input_projection"),
        conv=[filter_first(golden.weight(b + "dilated_conv")) for b in blocks],
        cond=[filter_first(golden.matrix(b + "conditioner_projection")) for b in blocks],
        conv_bias=[
            filter_first(golden.bias(b + "dilated_conv") + golden.bias(b + "conditioner_projection")) for b in blocks
        ],
        residual=[golden.matrix(b + "output_projection")[:channels] for b in blocks],
        residual_bias=[golden.bias(b + "output_projection")[:channels] for b in blocks],
        skip=[golden.matrix(b + "output_projection")[channels:] for b in blocks],
        skip_bias=[golden.bias(b + "output_projection")[channels:] for b in blocks],
        head=[golden.matrix("skip_projection") / layers**0.5, golden.matrix("output_projection")],
        head_bias=[golden.bias("skip_projection"), golden.bias("output_projection")],
    )
    spec = GatedStackSpec(
        front_relu=True,
        residual_channels=channels,
        gate_channels=channels,
        skip_channels=channels,
        kernel_size=3,
        dilations=[2 ** (i % hparams["dilation_cycle_length"]) for i in range(layers)],
        causal=False,
        cond_channels=hparams["n_mels"],
        head_channels=(channels, 1),
        head_relu=(False, True),
    )
    return spec, weights


def waveglow_coupling(golden, flow, **shape):
    """The WN of one of WaveGlow's affine couplings: the head's first half is mu, its second log sigma."""
    config = golden.hparams["WN_config"]
    layers, channels = config["n_layers"], config["n_channels"]
    prefix = f"WN.{flow}."
    cond = golden.matrix(prefix + "cond_layer").chunk(layers)
    cond_bias = golden.bias(prefix + "cond_layer").chunk(layers)
    products = [golden.matrix(f"{prefix}res_skip_layers.{i}") for i in range(layers)]
    product_biases = [golden.bias(f"{prefix}res_skip_layers.{i}") for i in range(layers)]
    start, end = golden.weight(prefix + "start"), golden.matrix(prefix + "end")
    weights = GatedStackWeights(
        front=start,
        front_bias=golden.bias(prefix + "start"),
        conv=[golden.weight(f"{prefix}in_layers.{i}") for i in range(layers)],
        conv_bias=[golden.bias(f"{prefix}in_layers.{i}") + cond_bias[i] for i in range(layers)],
        cond=cond,
        residual=[product[:channels] for product in products[:-1]],
        residual_bias=[bias[:channels] for bias in product_biases[:-1]],
        skip=[product[-channels:] for product in products],  # the last layer has nothing else
        skip_bias=[bias[-channels:] for bias in product_biases],
        head=[end],
        head_bias=[golden.bias(prefix + "end")],
    )
    spec = GatedStackSpec(
        in_channels=start.shape[1],
        residual_channels=channels,
        gate_channels=channels,
        skip_channels=channels,
        kernel_size=config["kernel_size"],
        dilations=[2**i for i in range(layers)],
        causal=False,
        residual_scale=1.0,
        cond_channels=cond[0].shape[1],
        head_channels=[len(end)],
        head_relu=[False],
        **shape,
    )
    return spec, weights


def r9y9_stack(golden):
    """A WaveNet of r9y9/wavenet_vocoder; its sqrt(1/layers) on the skip sum goes through the ReLU into the head."""
    hparams = golden.hparams
    layers = hparams["layers"]
    blocks = [f"conv_layers.{i}." for i in range(layers)]
    head = ["last_conv_layers.1", "last_conv_layers.3"]
    front = golden.weight("first_conv")
    weights = GatedStackWeights(
        front=front,
        front_bias=golden.bias("first_conv"),
        conv=[golden.weight(b + "conv") for b in blocks],
        conv_bias=[golden.bias(b + "conv") for b in blocks],
        cond=[golden.matrix(b + "conv1x1c") for b in blocks],
        residual=[golden.matrix(b + "conv1x1_out") for b in blocks],
        residual_bias=[golden.bias(b + "conv1x1_out") for b in blocks],
        skip=[golden.matrix(b + "conv1x1_skip") for b in blocks],
        skip_bias=[golden.bias(b + "conv1x1_skip") for b in blocks],
        head=[golden.matrix(head[0]) / layers**0.5, golden.matrix(head[1])],
        head_bias=[golden.bias(key) for key in head],
    )
    spec = GatedStackSpec(
        in_channels=front.shape[1],
        residual_channels=hparams["residual_channels"],
        gate_channels=hparams["gate_channels"] // 2,
        skip_channels=hparams["skip_out_channels"],
        kernel_size=hparams["kernel_size"],
        dilations=[2 ** (i % (layers // hparams["stacks"])) for i in range(layers)],
        cond_channels=hparams["cin_channels"],
        head_channels=(hparams["skip_out_channels"], hparams["out_channels"]),
        head_relu=(True, True),
    )
    return spec, weights


def r9y9_speaker_vectors(golden, ids):
    """The op's g, (batch, L, 2G), or None without global conditioning."""
    if "sd.embed_speakers.weight" not in golden:
        return None
    embedding = golden["sd.embed_speakers.weight"][ids]
    layers = range(golden.hparams["layers"])
    return torch.stack([embedding @ golden.matrix(f"conv_layers.{i}.conv1x1g").T for i in layers], 1)


def upsampler(spec, kind, stages, biases=None, context=None):
    """An Upsampler of the given 2-D kernels."""
    module = Upsampler(spec, kind).to(stages[0].dtype).requires_grad_(False)
    for i, stage in enumerate(module.stages):
        stage.weight.copy_(stages[i])
        if biases is not None:
            stage.bias.copy_(biases[i])
    if context is not None:
        module.context.weight.copy_(context)
    return module


def transposed_upsampler(golden, keys, scales):
    """ksw0306/ClariNet's and DiffWave's upsampler: transposed convolutions, each behind them a leaky ReLU of 0.4."""
    n_mels = golden["in.c" if "in.c" in golden else "in.mel"].shape[1]
    spec = UpsampleSpec(n_mels=n_mels, scales=scales, freq_kernel=3, slope=0.4)
    return upsampler(spec, "transposed", [golden.weight(k) for k in keys], [golden.bias(k) for k in keys])


def r9y9_upsampler(golden):
    hparams = golden.hparams
    params = hparams["upsample_params"]
    context_conv = hparams["upsample_net"] == "ConvInUpsampleNetwork"
    prefix = "upsample_net.upsample." if context_conv else "upsample_net."
    start = f"sd.{prefix}up_layers."
    indices = [int(k.split(".")[-2]) for k in golden.tensors if k.startswith(start) and k.endswith("weight_g")]
    spec = UpsampleSpec(
        n_mels=hparams["cin_channels"],
        scales=params["upsample_scales"],
        freq_kernel=params.get("freq_axis_kernel_size", 1),
        slope=params.get("upsample_activation_params", {}).get("negative_slope", 1.0),
        context=hparams["cin_pad"],
        context_conv=context_conv,
    )
    stages = [golden.weight(f"{prefix}up_layers.{i}") for i in sorted(indices)]
    return upsampler(
        spec, "stretched", stages, context=golden["sd.upsample_net.conv_in.weight"] if context_conv else None
    )
