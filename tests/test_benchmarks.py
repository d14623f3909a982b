"""The benchmarks: the baseline computes the model, the counts are right, and tiny cases go through to the table."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from fastwave import _cpu, evaluate
from fastwave.audio import MelSpec
from fastwave.layers import GatedStack
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet, WaveNetConfig
from fastwave.ops.gated_stack import GatedStackSpec
from fastwave.ops.rounding import DTYPES

sys.path.append(str(Path(__file__).resolve().parent.parent))  # they are not installed
pytest.importorskip("benchmarks", reason="needs the source tree")
from benchmarks import parts, quality, report, run, stacks
from benchmarks.baseline import ConvolutionStacks, Graphed, IncrementalWaveNet, onnx_runtime
from benchmarks.cases import CASES, FLOATS, PARALLEL_WAVEGAN, STUDENT_1, Case
from benchmarks.ceilings import Ceilings, Work, measure_ceilings, sampler_work, stack_work
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.limits import Device, Pipeline, measure_device
from benchmarks.gpu.workloads import CASES as GPU_CASES
from benchmarks.gpu.workloads import Case as GPUCase
from benchmarks.gpu.workloads import Chunk, DeviceGeneration, DeviceSampler, DeviceStacks
from benchmarks.workloads import FirstChunk, Generation, Sampler, Stacks, Voice

TINY = dict(
    mel=MelSpec(n_mels=7, hop_length=16, n_fft=64, win_length=64, sample_rate=8000, fmax=4000.0),
    front_width=3,
    residual_channels=6,
    gate_channels=5,
    skip_channels=4,
    kernel_size=3,
)
TEACHER = WaveNetConfig(dilations=(1, 2, 4), upsample_scales=(4,), cond_repeat=4, **TINY)
STUDENT = ClariNetStudentConfig(flows=((1, 2), (1, 2)), upsample_scales=(16,), **TINY)
TINY_CASES = (
    Case(name="sampler", about="a tiny sampler", make=lambda: Eager(TEACHER), threads=(1, 2)),
    Case(name="batch", about="two of them", make=lambda: Eager(TEACHER, batch=2), dtypes=("int8",)),
    Case(name="stacks", about="tiny stacks", make=lambda: EagerStacks(STUDENT.stack_specs(), 8000), dtypes=FLOATS),
    Case(name="voice-teacher", about="a tiny voice", make=lambda: Voice("tiny-teacher"), dtypes=FLOATS[:1]),
    Case(name="voice", about="another", make=lambda: Voice("tiny"), dtypes=FLOATS[:1]),
    Case(name="stream", about="a tiny stream", make=lambda: FirstChunk(STUDENT), dtypes=FLOATS[:1], latency=True),
)
CEILINGS = Ceilings(
    threads=1,
    operations={"float32": 1e11, "bfloat16": 2e11, "int8": 4e11},
    caches={"l2": 2**20, "l3": 2**25},
    bandwidth={"l2": 1e11, "l3": 5e10, "memory": 1e10},
)
TWO = dataclasses.replace(
    CEILINGS,
    threads=2,
    operations={dtype: 2 * value for dtype, value in CEILINGS.operations.items()},
    bandwidth={level: 2 * value for level, value in CEILINGS.bandwidth.items()},
)


class Eager(Sampler):
    """Without torch.compile, which takes half a minute."""

    def baselines(self, threads):
        return {"PyTorch": super().baselines(threads)["PyTorch"], "ONNX Runtime": self.missing}

    def missing(self, samples):
        raise ModuleNotFoundError("No module named 'onnxruntime'")


class EagerStacks(Stacks):
    def baselines(self, threads):
        return {name: make for name, make in super().baselines(threads).items() if name != "torch.compile"}


@pytest.mark.parametrize(
    "head",
    [
        dict(front_relu=True),
        dict(distribution="mixture_of_gaussians", components=3),
        dict(distribution="mixture_of_logistics", components=3, kernel_size=2),
        dict(distribution="softmax", classes=12),
        dict(distribution="softmax", classes=12, one_hot_input=True, initial_class=5),
    ],
    ids=str,
)
def test_baseline_is_the_model(head):
    torch.manual_seed(0)
    options = dict(dilations=(1, 4, 2), upsample_scales=(4,), cond_repeat=4)
    model = WaveNet(WaveNetConfig(**(TINY | options | head))).requires_grad_(False).double()
    mel = torch.rand(2, 7, 3, dtype=torch.float64)
    noise = model.noise(mel, None, 1)
    expected, sampler = model.generate(mel, noise=noise), IncrementalWaveNet(model)
    torch.testing.assert_close(sampler.generate(noise, model.condition(mel)), expected, rtol=1e-9, atol=1e-9)
    one = sampler.generate(noise[1:], model.condition(mel[1:]))
    torch.testing.assert_close(one, expected[1:], rtol=1e-9, atol=1e-9)
    # what torch.compile is given, without the compiler
    sampler = IncrementalWaveNet(model, wrap=lambda step: step)
    torch.testing.assert_close(sampler.generate(noise, model.condition(mel)), expected, rtol=1e-9, atol=1e-9)


def test_graphed_step_is_the_step():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = WaveNet(TEACHER).requires_grad_(False).cuda()
    mel = torch.rand(2, 7, 3, device="cuda")
    noise = model.noise(mel, None, 1)
    samplers = [IncrementalWaveNet(model, wrap) for wrap in (None, Graphed)]
    for _ in range(2):
        eager, graphed = (sampler.generate(noise, model.condition(mel)) for sampler in samplers)
        torch.testing.assert_close(graphed, eager)


@pytest.mark.parametrize(
    "change",
    [
        dict(epilogue="affine", delay="input", head_channels=(8, 2)),
        dict(epilogue="affine", epilogue_order="log_sigma", head_channels=(8, 2), cond_repeat=4),
        dict(front_causal=False, causal=False, front_relu=True, head_channels=(8, 3)),
    ],
    ids=str,
)
def test_convolutions_are_the_stack(change):
    torch.manual_seed(0)
    spec = dict(front_width=3, residual_channels=5, gate_channels=6, skip_channels=7, kernel_size=3, dilations=(1, 4))
    spec |= dict(cond_channels=4, head_relu=(True, True)) | change
    stack = GatedStack(GatedStackSpec(**spec)).requires_grad_(False).double()
    x = torch.randn(2, 1, 24, dtype=torch.float64)
    c = torch.randn(2, 4, 24 // stack.spec.cond_repeat, dtype=torch.float64)
    torch.testing.assert_close(ConvolutionStacks([stack])(x, c), stack(x, c), rtol=1e-9, atol=1e-9)


def test_onnx_runtime_computes_the_stack():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    stacks = ConvolutionStacks([GatedStack(spec).requires_grad_(False) for spec in STUDENT.stack_specs()])
    inputs = torch.randn(1, 1, 32), torch.rand(1, 7, 32)
    torch.testing.assert_close(onnx_runtime(stacks, inputs, threads=1)(), stacks(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "size", "scale"), [("float32", 4, 0), ("bfloat16", 2, 0), ("int8", 1, 4)])
def test_work_of_a_stack_counted_by_hand(dtype, size, scale):
    spec = GatedStackSpec(
        front_width=3,
        residual_channels=5,
        gate_channels=6,
        skip_channels=7,
        kernel_size=2,
        dilations=(1, 8),
        cond_channels=4,
        cond_repeat=2,
        head_channels=(8, 2),
        head_relu=(True, True),
        epilogue="affine",
        dtype=dtype,
    )
    front, tap, conditioning, residual, skip, head = 5 * 3, 12 * 5, 12 * 4 / 2, 5 * 6, 7 * 6, 7 * 8 + 8 * 2
    layers = 2 * (2 * tap + conditioning + skip) + residual
    expected = Counter({"float32": 2 * (front + head) + 20 * (2 * 2 * 6 + 1)})
    expected[dtype] += 2 * layers
    assert stack_work(spec) == Work(operations=dict(expected))
    # of a sampler, the tap 8 samples old is read for every 8th sample, and conditioning for hardly any
    work = sampler_work(spec)
    assert work.operations == expected
    rows = 12 * (3 + 1 / 8) + 2 * 7 + 5
    assert work.streamed == 4 * (front + head) + size * (tap * (3 + 1 / 8) + 2 * skip + residual) + scale * rows


def test_limits_counted_by_hand():
    reading = Work(operations={"float32": 1e6}, streamed=2**21)
    # half from the core's own cache, half from the one behind it
    seconds = 2**20 / 1e11 + 2**20 / 5e10
    assert CEILINGS.limit(reading) == pytest.approx(1 / seconds)
    # two cores keep all of it in their own caches, and read twice as fast
    assert TWO.limit(reading) == pytest.approx(2e11 / 2**21)
    # a weight is read once for four rows; each core reads all weights for its own four
    assert CEILINGS.limit(reading, batch=4) == pytest.approx(min(4 / seconds, 1e5))
    assert TWO.limit(reading, batch=8) == pytest.approx(8 / max(seconds, 4e-5))
    arithmetic = Work(operations={"float32": 1e6, "int8": 4e6})
    assert CEILINGS.limit(arithmetic) == pytest.approx(1 / 2e-5)
    assert TWO.limit(arithmetic) == pytest.approx(1 / 1e-5)
    assert TWO.limit(arithmetic, batch=3) == pytest.approx(3 / 4e-5)  # two rows, then the other has nothing to do
    assert CEILINGS.limit(arithmetic, batch=9) == pytest.approx(9 / (2 * 8 * 2e-5))  # eight rows, then one
    large = Work(operations={}, streamed=2**20 + 2**25 + 1e10)
    assert CEILINGS.limit(large) == pytest.approx(1 / (2**20 / 1e11 + 2**25 / 5e10 + 1))


def test_work_of_the_published_sizes():
    spec = WaveNetConfig.clarinet().stack_spec()
    teacher = sampler_work(spec)
    # taps of 256 x 128 at age 0 and, twice each, at ages 1, 2, 4, ..., 512; residual and skip; front and head
    taps = 256 * 128 * (20 + 2 * sum(1 / 2**i for i in range(10)))
    assert teacher.streamed / 4 == taps + 39 * 128 * 128 + 32 * 128 + 128 * 130
    assert sampler_work(dataclasses.replace(spec, dtype="bfloat16")).streamed < 0.51 * teacher.streamed
    student = sum(stack_work(spec).operations["float32"] for spec in STUDENT_1.stack_specs())
    assert student == pytest.approx(5.2e6, rel=0.05)
    assert stack_work(PARALLEL_WAVEGAN).operations["float32"] == pytest.approx(student / 2, rel=0.05)


def test_a_one_hot_input_picks_a_column():
    config = dict(distribution="softmax", classes=12, dilations=(1,), upsample_scales=(16,), **TINY)
    one_hot = sampler_work(WaveNetConfig(one_hot_input=True, **config).stack_spec())
    assert one_hot == sampler_work(WaveNetConfig(**config).stack_spec())


@pytest.mark.parametrize("threads", [1, 2])
def test_ceilings(threads, monkeypatch):
    monkeypatch.setattr("benchmarks.ceilings.TRIALS", 2)
    ceilings = measure_ceilings(threads)
    assert ceilings.threads == threads
    assert list(ceilings.operations) == list(DTYPES)
    assert list(ceilings.bandwidth) == [*ceilings.caches, "memory"]
    assert all(0 < value < 1e14 for value in (*ceilings.operations.values(), *ceilings.bandwidth.values()))


@pytest.mark.parametrize("name", ["sampler", "batch", "stacks"])
def test_parts(name, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.ceilings.TRIALS", 2)
    monkeypatch.setattr(parts, "CASES", TINY_CASES)
    monkeypatch.setattr(parts, "SECONDS", 1e-3)
    (case,) = (case for case in TINY_CASES if case.name == name)
    workload, dtype = case.make(), case.dtypes[-1]
    takes = parts.measure(workload, dtype=dtype, threads=1, repeats=1, seconds=1e-3)
    made = [parts.WHOLE, *parts.PARTS, parts.REST]
    assert list(takes) == (made if name == "stacks" else [*made, parts.READING])
    for key in ("took", "reading", "arithmetic"):
        assert sum(takes[part][key] for part in made[1:]) == pytest.approx(takes[parts.WHOLE][key], abs=1e-9)
    assert all(takes[part]["arithmetic"] > 0 for part in ("conditioning", "past taps", parts.REST))
    parts.main(["--case", name, "--repeats", "1"])
    assert capsys.readouterr().out.count(parts.WHOLE) == len(case.dtypes) * len(case.threads)


def test_parts_are_of_stacks(monkeypatch, capsys):
    monkeypatch.setattr(parts, "CASES", TINY_CASES)
    with pytest.raises(SystemExit):
        parts.main(["--case", "stream"])
    assert "--case must be a sampler, or stacks by themselves, got 'stream'" in capsys.readouterr().err


def test_stacks_of_a_parallel_model(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.ceilings.TRIALS", 2)
    tiny = Case(name="model", about="a tiny model", make=lambda: Generation(ClariNetStudent(STUDENT)))
    monkeypatch.setattr(stacks, "CASES", (tiny, *TINY_CASES))
    monkeypatch.setattr(stacks, "COLUMNS", 48)
    stacks.main(["--case", "model", "--repeats", "2"])
    sizes = {(flow.spec.layers, flow.spec.residual_channels) for flow in ClariNetStudent(STUDENT).flows}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(sizes)
    assert all(f"{layers} x {channels}, " in "".join(lines) for layers, channels in sizes)
    with pytest.raises(SystemExit):
        stacks.main(["--case", "stream"])
    assert "--case must be a parallel model, mel to waveform, got 'stream'" in capsys.readouterr().err


def test_peak_counts_multiply_adds():
    for isa in _cpu.isas():
        counts = subprocess.run(
            [
                sys.executable,
                "-c",
                "from fastwave import _cpu; print(*(_cpu.peak(3, d) for d in " + repr(DTYPES) + "))",
            ],
            env=os.environ | {"FASTWAVE_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        float32, bfloat16, int8 = map(int, counts)
        assert float32 > 0 and bfloat16 == 2 * float32 and int8 % (3 * 64) == 0 < int8
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, int8, got float64"):
        _cpu.peak(1, "float64")


def test_run_and_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "CASES", (*TINY_CASES, *(case for case in CASES if case.name == "lj-stft")))
    monkeypatch.setattr(run, "SECONDS", 0.002)
    monkeypatch.setattr(run, "measure_ceilings", {1: CEILINGS, 2: TWO}.get)
    monkeypatch.setattr("fastwave.vocoder.VOICES", tmp_path / "voices")
    WaveNet(TEACHER).save(tmp_path / "voices" / "tiny-teacher")
    ClariNetStudent(STUDENT).save(tmp_path / "voices" / "tiny")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    run.main(["--all", "--repeats", "3"])
    assert "lj-stft            skipped: no voice" in capsys.readouterr().out
    paths = sorted((tmp_path / "results").glob("*/*.json"))
    assert len(paths) == sum(len(case.dtypes) * len(case.threads) for case in TINY_CASES)
    for path in paths:
        result = json.loads(path.read_text())
        assert path == run.place(result)
        assert set(result["machine"]) == {"cpu", "cores", "isa", "torch", "python"}
        assert set(result) == {
            *("machine", "commit", "date", "ceilings", "case", "about", "dtype", "threads", "batch", "sample_rate"),
            *("latency", "kernels", "baselines", "not_measured", "limit", "share", "ratios"),
        }
        ours = result["kernels"]
        for summary in (ours, *result["baselines"].values()):
            assert set(summary) == {"samples_per_second", "min", "max", "real_time_factor", "samples"}
            assert summary["min"] <= summary["samples_per_second"] <= summary["max"]
        assert ours["real_time_factor"] == pytest.approx(ours["samples_per_second"] / 8000)
        assert result["share"] == pytest.approx(ours["samples_per_second"] / result["limit"])
        for name, ratio in result["ratios"].items():
            theirs = result["baselines"][name]["samples_per_second"]
            assert ratio == pytest.approx(ours["samples_per_second"] / theirs)
        assert (result["latency"] is not None) == (result["case"] == "stream")
        if result["case"] in ("sampler", "batch"):
            why = "ModuleNotFoundError: No module named 'onnxruntime'"
            assert result["not_measured"] == {"ONNX Runtime": why}
            assert result["batch"] == (2 if result["case"] == "batch" else 1)

    monkeypatch.setattr(report, "CASES", TINY_CASES)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "QUALITY", tmp_path / "results" / "quality.json")
    row = {"log_likelihood": 3.25, "stoi": 0.875, "pesq": 1.5}
    costs = {"isa": "avx2", "date": "2026-01-01", "clips": ["a", "b"], "dtypes": dict.fromkeys(DTYPES, row)}
    (tmp_path / "results" / "quality.json").write_text(json.dumps(costs))
    (tmp_path / "README.md").write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n")
    (tmp_path / "docs" / "kernels.md").write_text("<!-- quality -->\n<!-- /quality -->\n")
    markers = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("table1", "clipping", "table2"))
    (tmp_path / "docs" / "clarinet.md").write_text(markers)
    (tmp_path / "docs" / "models.md").write_text("<!-- speed sampler batch -->\n<!-- /speed sampler batch -->\nafter\n")
    report.main()
    speeds = (tmp_path / "docs" / "models.md").read_text()
    assert "| `sampler` | int8 | 2 | " in speeds and "| `batch` | " in speeds and "| `stream` | " not in speeds
    assert speeds.endswith(" |\n<!-- /speed sampler batch -->\nafter\n")
    assert "| Gaussian |" in (tmp_path / "docs" / "clarinet.md").read_text()
    written = (tmp_path / "README.md").read_text()
    assert written.startswith("before\n<!-- benchmarks -->\n") and written.endswith("<!-- /benchmarks -->\nafter\n")
    assert "old" not in written and "| `sampler` | int8 | 2 | " in written and " ms) | " in written
    assert written.index("| `sampler` |") < written.index("| `batch` |") < written.index("| `stream` |")
    assert "| int8 | 3.2500 | 0.8750 | 1.500 |" in (tmp_path / "docs" / "kernels.md").read_text()
    *clarinet, limit, speed = sorted(path.name for path in (tmp_path / "docs").glob("*.png"))
    assert clarinet == ["clarinet-clipping.png", "clarinet-distillation.png"]
    assert limit.startswith("limit-") and speed.startswith("speed-") and f"](docs/{speed})" in written
    report.main()
    assert (tmp_path / "README.md").read_text() == written
    (tmp_path / "results" / "a-machine").mkdir()
    stream = next((tmp_path / "results").glob("*/stream-*.json"))
    (tmp_path / "results" / "a-machine" / stream.name).write_text(stream.read_text())
    report.main()  # another machine stands behind that with more results, and only where it has any
    assert (tmp_path / "docs" / "models.md").read_text() == speeds
    pages = (tmp_path / "README.md").read_text()
    assert pages.count(f"](docs/{speed})") == 1 and pages.index(f"](docs/{speed})") < pages.index("speed-a-machine.png")


def test_one_case_of_another_type(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "CASES", TINY_CASES)
    monkeypatch.setattr(run, "SECONDS", 0.002)
    monkeypatch.setattr(run, "measure_ceilings", {1: CEILINGS, 2: TWO}.get)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    run.main(["--case", "batch", "--dtype", "bfloat16", "--threads", "2", "--repeats", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["case"], result["dtype"], result["threads"]) == ("batch", "bfloat16", 2)
    assert not (tmp_path / "results").exists()


def test_log_likelihood_is_that_of_the_model():
    torch.manual_seed(0)
    model, wave = WaveNet(TEACHER).requires_grad_(False), 0.1 * torch.randn(16 * 9)
    expected = evaluate.log_likelihood(model, wave)
    assert quality.log_likelihood(model, wave, "float32") == pytest.approx(expected, rel=1e-4)
    assert quality.log_likelihood(model, wave, "int8") == pytest.approx(expected, rel=0.05)


def test_a_case_without_its_voice_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fastwave.vocoder.VOICES", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run.main(["--case", "lj-stft"])
    assert "error: no voice 'lj-stft'" in capsys.readouterr().err


def test_list_names_every_case(capsys):
    run.main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [case.name for case in CASES]


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="must have <!-- benchmarks -->"):
        report.with_table("<!-- /benchmarks --> <!-- benchmarks -->", "benchmarks", "")


# on a GPU ------------------------------------------------------------------------------------------------------------

PROBES = {
    "st_async_hop_ns": 200.0,
    "l2_hop_ns": 700.0,
    "clock_mhz": 2000.0,
    "bfloat16_from_registers_cycles": 100.0,
    "bfloat16_from_shared_cycles": 200.0,
    "float32_from_registers_cycles": 400.0,
    "float32_from_shared_cycles": 800.0,
}


@pytest.mark.parametrize(
    ("dtype", "kernel", "stages", "pipelines", "batch", "nanoseconds"),
    [
        # 16 hops, 20 layers of 1.5 products at 50 ns, a head of (128 + 2) x 128 multiply-adds: about half a product
        ("bfloat16", "cluster 128/128", 16, 1, 1, 16 * 200 + 20 * 1.5 * 50 + 400 * 130 / 256),
        ("float32", "mailboxes 128/128", 21, 1, 1, 21 * 700 + 20 * 1.5 * 200 + 400 * 130 / 256),
        # each of 11 blocks has 2 layers, of 2 taps, 80 bands, residual and skip: 1 more product, and 32 groups
        ("bfloat16", "cluster 128/128", 11, 2, 512, 32 * 2 * (2 + 80 / 128 + 1) * 100),
    ],
)
def test_limit_of_a_pipeline_by_hand(dtype, kernel, stages, pipelines, batch, nanoseconds):
    spec = dataclasses.replace(WaveNet(WaveNetConfig.clarinet()).stack.spec, dtype=dtype)
    assert spec.head_channels == (128, 2)
    plan = {"kernel": kernel, "stages": stages, "pipelines": pipelines}
    assert Pipeline(PROBES, spec, plan).limit(batch) == pytest.approx(batch * 1e9 / nanoseconds)


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """The device's own calls do nothing."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12)
    monkeypatch.setattr(gpu_run, "SECONDS", 0)


def test_cases_of_a_gpu(cpu_as_gpu, monkeypatch):
    """On the CPU, at tiny sizes: what needs a GPU is said to be missing."""
    import emulated_cuda

    if emulated_cuda.cuda is None:
        pytest.skip("not built: make cuda_on_cpu")
    monkeypatch.setattr("fastwave._cuda", emulated_cuda.cuda, raising=False)
    monkeypatch.setattr("benchmarks.gpu.workloads.captured", lambda run: run)
    device = Device(operations={"float32": 1e9, "bfloat16": 2e9}, bandwidth=1e9)
    cases = [
        GPUCase(name="sampler", make=lambda: DeviceSampler(TEACHER, 2, "cpu"), samples=8),
        GPUCase(
            name="stacks", make=lambda: DeviceStacks(STUDENT.stack_specs(), 8000, 2, "cpu"), samples=32, parallel=True
        ),
        GPUCase(name="chunk", make=lambda: Chunk(STUDENT.stack_specs(), 8000, 1, "cpu"), samples=16, parallel=True),
        GPUCase(
            name="generate", make=lambda: DeviceGeneration(ClariNetStudent(STUDENT), "cpu"), samples=32, parallel=True
        ),
    ]
    for case in cases:
        result = gpu_run.measure(case, device, PROBES)
        assert result["case"] == case.name and set(result["kernels"]) == {"float32", "bfloat16"}
        rivals = {"sampler": {"PyTorch"}, "generate": {"PyTorch", "CUDA graph"}}
        stacks = {"PyTorch", "PyTorch, bfloat16", "CUDA graph, bfloat16"}
        assert set(result["baselines"]) == rivals.get(case.name, stacks)
        assert set(result["missing"]) == ({"CUDA graph"} if not case.parallel else set())
        for ours in result["kernels"].values():
            assert ours["min"] <= ours["samples_per_second"] <= ours["max"] and ours["bytes"] == 7
            assert ours["microseconds"] == pytest.approx(1e6 * case.make().batch / ours["samples_per_second"])
            assert ours["share"] > 0 and set(ours["ratios"]) == set(result["baselines"])
            assert ("plan" in ours) == (not case.parallel) and ("bandwidth_share" in ours) == case.parallel
        json.dumps(result)


def test_ceilings_of_a_device(cpu_as_gpu):
    device = measure_device(32, "cpu")
    work = Work(operations={"float32": 10, "bfloat16": 20})
    assert device.limit(work) == pytest.approx(
        1 / (10 / device.operations["float32"] + 20 / device.operations["bfloat16"])
    )
    assert device.bandwidth > 0


def test_names_of_a_gpus_cases():
    names = [case.name for case in GPU_CASES]
    assert len(set(names)) == len(names) and {"teacher-batch-1", "r9y9-softmax-batch-512", "student-1-32x10s"} <= set(
        names
    )
