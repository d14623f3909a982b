"""The benchmarks: the baseline computes the model, the counts are right, and tiny cases go through to the table."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fastwave.audio import MelSpec
from fastwave.models import ClariNetStudent, ClariNetStudentConfig, WaveNet, WaveNetConfig
from fastwave.ops.gated_stack import GatedStackSpec

sys.path.append(str(Path(__file__).resolve().parent.parent))  # they are not installed
pytest.importorskip("benchmarks", reason="needs the source tree")
from benchmarks import report, run
from benchmarks.baseline import IncrementalWaveNet
from benchmarks.cases import CASES, PARALLEL_WAVEGAN, STUDENT_1, Case, FirstChunk, Sampler, Stacks, Voice
from benchmarks.ceilings import Ceilings, Work, measure_ceilings, sampler_work, stack_work

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
    Case(name="sampler", about="a tiny sampler", make=lambda: Sampler(TEACHER)),
    Case(name="stacks", about="tiny stacks", make=lambda: Stacks(STUDENT.stack_specs(), 8000)),
    Case(name="voice-teacher", about="a tiny voice", make=lambda: Voice("tiny-teacher")),
    Case(name="voice", about="another", make=lambda: Voice("tiny")),
    Case(name="stream", about="a tiny stream", make=lambda: FirstChunk(STUDENT), latency=True),
)
CEILINGS = Ceilings(
    operations=1e11, caches={"l2": 2**20, "l3": 2**25}, bandwidth={"l2": 1e11, "l3": 5e10, "memory": 1e10}
)


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
    mel = torch.rand(1, 7, 3, dtype=torch.float64)
    noise = model.noise(mel, None, 1)
    wave = IncrementalWaveNet(model).generate(noise, model.condition(mel))
    torch.testing.assert_close(wave, model.generate(mel, noise=noise), rtol=1e-9, atol=1e-9)


def test_work_of_a_stack_counted_by_hand():
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
    )
    gates = 20 * 2 * 2 * 6
    front, tap, conditioning, residual, skip, head = 5 * 3, 12 * 5, 12 * 4 / 2, 5 * 6, 7 * 6, 7 * 8 + 8 * 2
    total = front + 2 * (2 * tap + conditioning + skip) + residual + head
    assert stack_work(spec) == Work(operations=2 * total + gates + 20)
    # of a sampler, the tap 8 samples old and the conditioning need not wait for the sample before
    ahead = tap + 2 * conditioning
    work = sampler_work(spec)
    assert work.streamed == 4 * (total - ahead)
    assert work.operations == 2 * ahead + gates + 20
    assert work.weights == 4 * (total + 2 * conditioning)
    # its weights fit the first level
    assert CEILINGS.seconds(work) == pytest.approx(work.streamed / 1e11 + work.operations / 1e11)


def test_work_of_the_published_sizes():
    teacher = sampler_work(WaveNetConfig.clarinet().stack_spec())
    assert teacher.weights / 4 == pytest.approx(2.40e6, rel=0.01)
    assert teacher.streamed / 4 == pytest.approx(
        1.31e6 + 6 * 256 * 128, rel=0.01
    )  # six taps are younger than 8 samples
    student = sum(stack_work(spec).operations for spec in STUDENT_1.stack_specs())
    assert student == pytest.approx(5.2e6, rel=0.05)
    assert stack_work(PARALLEL_WAVEGAN).operations == pytest.approx(student / 2, rel=0.05)


def test_a_one_hot_input_picks_a_column():
    config = dict(distribution="softmax", classes=12, dilations=(1,), upsample_scales=(16,), **TINY)
    one_hot = sampler_work(WaveNetConfig(one_hot_input=True, **config).stack_spec())
    assert one_hot == sampler_work(WaveNetConfig(**config).stack_spec())


def test_ceilings():
    ceilings = measure_ceilings()
    assert list(ceilings.bandwidth) == [*ceilings.caches, "memory"]
    assert all(0 < value < 1e14 for value in (ceilings.operations, *ceilings.bandwidth.values()))


def test_large_weights_are_read_from_where_they_fit():
    assert CEILINGS.seconds(Work(operations=0, streamed=5e10, weights=2**22)) == 1
    assert CEILINGS.seconds(Work(operations=0, streamed=1e10, weights=2**26)) == 1


def test_run_and_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "CASES", (*TINY_CASES, *(case for case in CASES if case.name == "lj")))
    monkeypatch.setattr(run, "SECONDS", 0.002)
    monkeypatch.setattr(run, "measure_ceilings", lambda: CEILINGS)
    monkeypatch.setattr("fastwave.vocoder.VOICES", tmp_path / "voices")
    WaveNet(TEACHER).save(tmp_path / "voices" / "tiny-teacher")
    ClariNetStudent(STUDENT).save(tmp_path / "voices" / "tiny")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    run.main(["--all", "--repeats", "3"])
    (path,) = (tmp_path / "results").iterdir()
    result = json.loads(path.read_text())
    assert path.stem == run.slug(result)
    assert set(result) == {*("machine", "commit", "date", "threads", "dtype", "ceilings", "cases", "skipped")}
    assert set(result["machine"]) == {"cpu", "cores", "isa", "torch", "python"}
    assert list(result["cases"]) == ["sampler", "stacks", "voice-teacher", "voice", "stream"]
    for name, case in result["cases"].items():
        assert set(case) == {"about", "kernels", "baseline", "latency", "limit", "share", "ratio"}
        ours, theirs = case["kernels"], case["baseline"]
        assert ours["min"] <= ours["samples_per_second"] <= ours["max"]
        assert set(ours) == set(theirs) == {"samples_per_second", "min", "max", "real_time_factor", "samples"}
        assert ours["real_time_factor"] == pytest.approx(ours["samples_per_second"] / 8000)
        assert case["share"] == pytest.approx(ours["samples_per_second"] / case["limit"])
        assert case["ratio"] == pytest.approx(ours["samples_per_second"] / theirs["samples_per_second"])
        assert (case["latency"] is not None) == (name == "stream")
    assert "no voice 'lj'" in result["skipped"]["lj"]
    assert "lj                 skipped: no voice" in capsys.readouterr().out

    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n")
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    report.main()
    written = readme.read_text()
    assert written.startswith("before\n<!-- benchmarks -->\n") and written.endswith("<!-- /benchmarks -->\nafter\n")
    assert "old" not in written and "| `sampler`: a tiny sampler | " in written and " ms) | " in written
    report.main()
    assert readme.read_text() == written


def test_a_case_without_its_voice_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "measure_ceilings", lambda: CEILINGS)
    monkeypatch.setattr("fastwave.vocoder.VOICES", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run.main(["--case", "lj", "--json", str(tmp_path / "result.json")])
    assert "error: no voice 'lj'" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()


def test_list_names_every_case(capsys):
    run.main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [case.name for case in CASES]


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="must have <!-- benchmarks -->"):
        report.with_tables("<!-- /benchmarks --> <!-- benchmarks -->", [])
