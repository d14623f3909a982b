"""Training that scales: processes, micro-batches, workers; runs that are killed; what TensorBoard shows."""

import dataclasses
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import weakref

import children
import pytest
import torch
from test_flowavenet import TINY as FLOWAVENET
from test_parallel_wavegan import TINY as PARALLEL_WAVEGAN
from test_train import STUDENT, TEACHER, tone
from test_wg_wavenet import SMALL as WG_WAVENET
from trainings import log_lines
from trainings import options as tiny

from fastwave import audio, models
from fastwave.train import TRAININGS, data, loop, processes
from fastwave.train.distill import DistillationTraining
from fastwave.train.options import Learner, Objective, Training

KINDS = TRAININGS | {"distill": DistillationTraining}
CONFIGS = {
    "distill": STUDENT,
    "flowavenet": FLOWAVENET,
    "parallel-wavegan": PARALLEL_WAVEGAN,
    "student": STUDENT,
    "teacher": TEACHER,
    "wg-wavenet": WG_WAVENET,
}
ADVERSARIAL = {"discriminator_channels": 4, "discriminator_start": 2}
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # of float32: ten times what is seen


@pytest.fixture
def options(tmp_path):
    """Makes the options of a tiny run: of the same clips, in a folder of its own."""

    def make(name, out="run", **changes):
        folder, config = tmp_path / name, CONFIGS[name]
        if not folder.is_dir():
            folder.mkdir()
            for seed, clip in enumerate(["a.wav", "b.flac", "c.wav"]):
                audio.write(folder / clip, tone(4000 + 777 * seed, seed), config.mel.sample_rate)
        values = {"out": tmp_path / out, "steps": 6, "interval": 1, "batch": 4, "frames": 80, "precision": "float32"}
        if name == "teacher":  # SOAP magnifies roundings: eigenvectors of like eigenvalues may be any mixture of them
            values["optimizer"] = "adam"
        return tiny(KINDS[name], config, folder, **(values | changes))

    return make


def state(training):
    return torch.load(training.out / "checkpoint.pt", weights_only=True)


def assert_same_weights(first, second, **tolerance):
    """Of the models, and of the averages; the optimisers' moments too, where bits are compared."""
    ends = [state(training) for training in (first, second)]
    for part in ("step", "modules", "average", *(() if tolerance else ("optimizers",))):
        torch.testing.assert_close(ends[0][part], ends[1][part], **(tolerance or {"rtol": 0, "atol": 0}))


def assert_same_curves(first, second):
    lines = [log_lines(training) for training in (first, second)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for one, other in zip(*lines, strict=True):
        names = one.keys() - {"seconds"}
        assert names == other.keys() - {"seconds"}
        assert [one[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-5, abs=1e-6)


# micro-batches -------------------------------------------------------------------------------------------------------


def update(objective, segments, step=0):
    """One step alone: the losses."""
    updates = loop._update(objective, loop.NextLoss(objective.learners), segments, segments.wave.device, step)
    return [figures["loss"] for _, figures in updates]


@pytest.mark.parametrize("name", ["teacher", "flowavenet"])
def test_micro_batches_have_the_gradient_of_the_batch(options, name):
    """Of losses that are means over the batch and draw nothing; in float64, under plain descent."""
    training = options(name, learning_rate=1.0, clip_norm=1e9)
    config = training.model_config([])
    wave, mel, names = data.Dataset(data.find_clips(training.data), config.mel, training.frames).draw(4, 0, 0)
    segments = data.Segments(wave.double(), mel.double(), names)
    losses, ends = [], []
    for accumulate in (1, 2, 4):
        torch.manual_seed(0)
        model = training.model_class(config).double()
        objective = training.objective(model, dataclasses.replace(training, accumulate=accumulate))
        objective.learners["model"] = Learner(model, torch.optim.SGD(model.parameters()), training.clip_norm, "all")
        with torch.no_grad():
            objective.initialize(segments.wave, segments.mel)
        losses += update(objective, segments)
        ends.append(dict(model.state_dict()))
    assert losses == pytest.approx(losses[:1] * 3, rel=1e-6)  # summed in float32
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-12)


def test_micro_batches_draw_noise_of_their_own(options):
    """In every step and update another; in the same step, the same again."""
    training = options("teacher", accumulate=2)
    drawn = []

    class Noisy(Objective):
        def losses(self, wave, mel, step):
            for _ in range(2):
                drawn.append(torch.rand(()).item())
                yield "model", self.model.loss(wave, mel)

    objective = Noisy(models.WaveNet(TEACHER), training)
    segments = data.Dataset(data.find_clips(training.data), TEACHER.mel, training.frames).draw(4, 0, 0)
    for step in (0, 1, 0):
        assert len(update(objective, segments, step)) == 2
    assert len(drawn) == 12 and len(set(drawn)) == 8
    assert drawn[:4] == drawn[8:]


# processes -----------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def in_two_processes(*runs):
    """What the two raised in each of the runs (options, and what breaks on one of the processes)."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    runs = [(free_port(), *run) for run in runs]
    processes = [context.Process(target=children.run_as, args=(rank, runs, results), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    raised = [results.get(timeout=120) for _ in range(2 * len(runs))]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    return list(zip(*([error for rank, error in raised if rank == one] for one in range(2)), strict=True))


def test_two_processes_are_as_one(options, tmp_path):
    """With as many micro-batches: noise, discriminators, initialisation from data, unused parameters and all."""
    models.WaveNet(TEACHER).save(tmp_path / "model")
    distillation = {"teacher": str(tmp_path / "model")}
    changes = {"flowavenet": {}, "wg-wavenet": {}, "parallel-wavegan": ADVERSARIAL, "distill": distillation}
    pairs = [options(name, f"{name}-2", steps=4, **more) for name, more in changes.items()]
    alone = [options(name, f"{name}-1", steps=4, accumulate=2, **more) for name, more in changes.items()]
    pieces = options("teacher", "pieces")
    nan, odd = options("teacher", "nan"), options("teacher", "odd", batch=3)
    *fine, nans, interrupts, resumed, odds = in_two_processes(
        *((pair, children.nothing) for pair in pairs),
        (nan, children.second_has_nan),
        (pieces, children.second_gets_ctrl_c),
        (pieces, children.nothing),
        (odd, children.nothing),
    )

    assert fine == [(None, None)] * len(pairs)
    for pair, one in zip(pairs, alone, strict=True):
        loop.run(one, quiet=True)
        assert_same_curves(pair, one)

    dataset = data.Dataset(data.find_clips(nan.data), TEACHER.mel, nan.frames)
    names = ", ".join(dataset.draw(nan.batch, nan.seed, 2).names)
    assert nans == (f"FloatingPointError: loss and gradient must be finite, got nan and nan at step 2 on {names}",) * 2
    assert state(nan)["step"] == 2

    assert interrupts == ("KeyboardInterrupt: ",) * 2 and resumed == (None, None)
    whole = options("teacher", "whole")
    loop.run(whole, quiet=True)
    assert_same_weights(pieces, whole, **ROUNDING)
    assert odds == ("ValueError: batch must be a multiple of 2 processes x accumulate 1, got 3",) * 2


def test_nobody_leaves_before_all_have_come():
    context = multiprocessing.get_context("spawn")
    times, port = context.Queue(), free_port()
    pair = [context.Process(target=children.leave, args=(rank, port, 1, times), daemon=True) for rank in range(2)]
    for process in pair:
        process.start()
    (_, came, _), (_, _, left) = sorted(times.get(timeout=120) for _ in range(2))
    assert left >= came
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [0, 0]


def test_what_averages_gradients_ends_before_the_group(options, monkeypatch):
    """Though an error's traceback still has its frames: see processes.averaged."""
    reducers = []

    class Watched(processes.DistributedDataParallel):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            reducers.append(weakref.ref(self.reducer))

    monkeypatch.setattr(processes, "DistributedDataParallel", Watched)
    monkeypatch.setattr(
        models.WaveNet, "loss", lambda self, *_, **__: sum(w.sum() for w in self.parameters()) * math.nan
    )
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(FloatingPointError, match="got nan and nan at step 0") as caught:
        loop.run(options("teacher"), quiet=True)
    assert caught.tb is not None and len(reducers) == 1
    assert reducers[0]() is None


def test_torchrun_has_the_loss_curve_of_one_process(options, tmp_path):
    first = str(tmp_path / "first")
    options("teacher", seed=1).make_model([]).save(first)
    training = options("teacher", "pair", start=first, validation_clips=("b",), steps=10, learning_rate=1e-2, ema=0.5)
    arguments = ["--data", training.data, "--config", training.config, "--out", training.out, "--validation-clips", "b"]
    arguments += ["--start", first]  # which torchrun takes for one of its own without the -- below
    arguments += ["--steps", 10, "--interval", 1, "--batch", 4, "--frames", 80, "--precision", "float32"]
    arguments += ["--learning-rate", 1e-2, "--ema", 0.5, "--optimizer", "adam"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "--", "fastwave", "train", "teacher", *arguments]
    done = subprocess.run([str(word) for word in command], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = dataclasses.replace(training, out=tmp_path / "alone")
    loop.run(alone, quiet=True)
    assert_same_curves(training, alone)
    assert_same_weights(training, alone, **ROUNDING)


def test_processes_have_a_gpu_each(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert loop.checked_device("cuda") == torch.device("cuda", 1)
    assert loop.checked_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device must be cpu or cuda under torchrun, got 'cuda:1'"):
        loop.checked_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"device must be one that is here \(1 CUDA devices\), got 'cuda'"):
        loop.checked_device("cuda")


# killed and resumed --------------------------------------------------------------------------------------------------


def test_a_killed_run_ends_like_another(options):
    whole, killed = (options("student", out, steps=10, interval=2, ema=0.8) for out in ("whole", "killed"))
    loop.run(whole, quiet=True)
    for kill, when, step in ((children.killed_in, 5, 4), (children.killed_while_saving, 2, 6)):
        process = multiprocessing.get_context("spawn").Process(target=kill, args=(killed, when))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert state(killed)["step"] == step
    loop.run(killed, quiet=True)
    assert_same_weights(whole, killed)
    assert (whole.out / "model/model.safetensors").read_bytes() == (killed.out / "model/model.safetensors").read_bytes()
    lines = [[{**line, "seconds": 0} for line in log_lines(training)] for training in (whole, killed)]
    assert lines[0] == lines[1]


# the average of the weights ------------------------------------------------------------------------------------------


def test_the_average_is_exponential(options):
    """Step by step, resumed each time: it begins at the first weights, and is what is validated and saved in model/."""
    training = options("teacher", steps=4, ema=0.7, validation_clips=("b",))
    average = None
    for _ in range(4):
        loop.run(dataclasses.replace(training, minutes=1e-9), quiet=True)
        weights = state(training)["modules"]["model"]
        average = average or weights
        average = {name: 0.7 * average[name] + 0.3 * weights[name] for name in weights}
    saved = models.load(training.out / "model")
    torch.testing.assert_close(dict(saved.state_dict()), average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(saved.stack.front.weight, weights["stack.front.weight"])
    dataset = data.Dataset(data.select(data.find_clips(training.data), ["b"])[0], TEACHER.mel, training.frames)
    loss = loop.validation_loss(saved, dataset, training.seed)
    assert log_lines(training)[-1]["validation_loss"] == pytest.approx(loss, rel=1e-6)


def test_an_average_may_begin_later(options):
    training = options("teacher")
    loop.run(dataclasses.replace(training, minutes=1e-9), quiet=True)
    loop.run(dataclasses.replace(training, minutes=1e-9, ema=0.9), quiet=True)
    end = state(training)
    averaged = {name: end["average"][f"module.{name}"] for name in end["modules"]["model"]}
    torch.testing.assert_close(averaged, dict(end["modules"]["model"]), rtol=0, atol=0)


# workers -------------------------------------------------------------------------------------------------------------

# of Python 3.12, because of the monitor of tqdm's bars
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@forks
def test_workers_change_nothing(options, monkeypatch):
    """Also when Ctrl-C reaches them, and the process that trains does not stop."""
    alone, helped = options("teacher", "alone"), options("teacher", "helped", workers=2)
    loop.run(alone, quiet=True)
    unchanged, children = Training.rate, []

    def rate(self, step):
        if step == 2:
            children.extend(multiprocessing.active_children())
            for child in children:
                os.kill(child.pid, signal.SIGINT)
        return unchanged(self, step)

    monkeypatch.setattr(Training, "rate", rate)
    loop.run(helped, quiet=True)
    assert len(set(children)) == 2
    assert_same_weights(alone, helped)


@forks
def test_a_worker_that_cannot_read(options):
    training = options("teacher", workers=1)
    flac = training.data / "b.flac"
    whole = flac.read_bytes()
    flac.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^path must be a readable audio file, got '.*b\.flac': "):
        loop.run(training, quiet=True)


def test_a_dataset_keeps_so_much_and_no_more(options, monkeypatch):
    training = options("teacher")
    whole = data.Dataset(data.find_clips(training.data), TEACHER.mel, 10)
    expected = [whole.draw(4, 0, step).wave for step in range(5)]
    monkeypatch.setattr(data, "KEPT", 1)  # of 0.5, 0.6 and 0.7 seconds
    read = []
    monkeypatch.setattr(audio, "read", lambda path, rate, read_=audio.read: (read.append(path), read_(path, rate))[1])
    dataset = data.Dataset(whole.clips, TEACHER.mel, 10)
    assert all(torch.equal(dataset.draw(4, 0, step).wave, wave) for step, wave in enumerate(expected))
    assert sorted(read.count(clip.path) > 1 for clip in dataset.clips) == [False, True, True]


# TensorBoard ---------------------------------------------------------------------------------------------------------


def board(training):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "histograms": 0, "audio": 0}
    return EventAccumulator(str(training.out / "tensorboard"), everything).Reload()


def test_tensorboard_of_a_teacher(options):
    """A run that goes on from an earlier checkpoint shows each step once."""
    training = options("teacher", steps=4, interval=2, validation_clips=("b",), tensorboard=True)
    loop.run(training, quiet=True)
    (training.out / "checkpoint.pt").unlink()
    (training.out / "log.jsonl").unlink()
    loop.run(training, quiet=True)
    shown = board(training)
    assert set(shown.Tags()["scalars"]) == {"loss", "gradient_norm", "validation_loss", "learning_rate"}
    for name in shown.Tags()["scalars"]:
        lines = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in log_lines(training)]
        assert [(event.step, event.value) for event in shown.Scalars(name)] == lines
    assert [event.step for event in shown.Audio("validation")] == [2, 4]
    assert shown.Tags()["histograms"] == ["log_sigma"]
    assert [event.step for event in shown.Histograms("log_sigma")] == [2, 4]
    assert shown.Histograms("log_sigma")[0].histogram_value.num == 4 * 80 * 16


def test_tensorboard_of_a_student(options):
    training = options("student", steps=2, validation_clips=("b",), tensorboard=True)
    loop.run(training, quiet=True)
    shown = board(training)
    assert [event.step for event in shown.Audio("validation")] == [1, 2]
    assert shown.Audio("validation")[0].sample_rate == 8000
    assert shown.Tags()["histograms"] == []


def test_tensorboard_is_an_extra(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"tensorboard is not installed; pip install 'fastwave\[train\]'"):
        loop.run(options("teacher", tensorboard=True), quiet=True)


# options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"accumulate": 3}, "batch must be a multiple of 1 processes x accumulate 3, got 4"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"ema": 1.0}, "ema must be above 0 and below 1, got 1.0"),
        ({"ema": math.nan}, "ema must be above 0 and below 1, got nan"),
    ],
)
def test_bad_options(options, changes, message):
    with pytest.raises(ValueError, match=message):
        loop.run(options("teacher", **changes), quiet=True)


def test_the_bar_shows_samples(options, capsys):
    loop.run(options("teacher", steps=2))
    _, err = capsys.readouterr()
    assert "step 2/2" in err and "10.2k/10.2k" in err and "sample/s" in err
