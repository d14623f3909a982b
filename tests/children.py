"""What tests of training run in processes of their own."""

import functools
import math
import os
import signal
import time
from pathlib import Path

import torch

from fastwave import models
from fastwave.train import loop, processes
from fastwave.train.options import Training


def run_as(rank, runs, results):
    """One of two processes: each run (port, options, what breaks) in turn; ``results`` gets the rank and the error."""
    torch.set_num_threads(1)
    for port, training, sabotage in runs:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        repair = sabotage(rank)
        try:
            loop.run(training, quiet=True)
            results.put((rank, None))
        except (ValueError, FloatingPointError, KeyboardInterrupt) as error:
            results.put((rank, f"{type(error).__name__}: {error}"))
        repair()


def nothing(rank):
    """Nothing breaks."""
    return lambda: None


def second_has_nan(rank):
    """The loss of the second process is NaN in the third step."""
    unchanged, calls = models.WaveNet.loss, []

    def loss(self, wave, mel, **named):
        calls.append(1)
        return unchanged(self, wave, mel, **named) * (math.nan if rank == 1 and len(calls) == 3 else 1)

    models.WaveNet.loss = loss
    return functools.partial(setattr, models.WaveNet, "loss", unchanged)


def second_gets_ctrl_c(rank):
    """The second process is interrupted in the third step."""
    unchanged = Training.rate

    def rate(self, step):
        if rank == 1 and step == 2:
            signal.raise_signal(signal.SIGINT)
        return unchanged(self, step)

    Training.rate = rate
    return functools.partial(setattr, Training, "rate", unchanged)


def leave(rank, port, seconds, times):
    """One of two processes, of which the first is late; ``times`` gets the rank, when it came to the end and left."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with processes.joined(torch.device("cpu")):
        processes.total(torch.ones(1))
        time.sleep(0 if rank else seconds)
        came = time.monotonic()
    times.put((rank, came, time.monotonic()))


def killed_in(training, step):
    """Inside the step that follows ``step`` updates."""
    torch.set_num_threads(1)
    unchanged = Training.rate

    def rate(self, now):
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return unchanged(self, now)

    Training.rate = rate
    loop.run(training, quiet=True)


def killed_while_saving(training, count):
    """Before the ``count``-th checkpoint takes the place of the last one."""
    torch.set_num_threads(1)
    unchanged, saved = os.replace, []

    def replace(source, target):
        saved.extend([target] if Path(target).name == loop.CHECKPOINT else [])
        if len(saved) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        unchanged(source, target)

    os.replace = replace
    loop.run(training, quiet=True)
