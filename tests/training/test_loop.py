"""The loop: what it tells an algorithm and in which order; reading ahead of the step that computes."""

import time

import pytest
import torch
from lightning_fabric import Fabric

from medsynth_lib.settings import TrainingSettings
from medsynth_lib.training.loop import Algorithm, Run, batch_indices, fit, linear_decay, read_ahead, read_batch


class Slow:
    """Four samples, each of which takes a while to read."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __len__(self):
        return 4

    def __getitem__(self, i):
        time.sleep(self.seconds)
        return {"x": torch.tensor(float(i)), "unused": object()}


def test_batches_are_those_of_their_steps():
    def read(step):
        return read_batch(("x",), Slow(), 2, seed=3, step=step, rank=0, ranks=1)

    for step, batch in zip(range(5, 9), read_ahead(read, 5, 9), strict=True):
        assert batch["x"].tolist() == batch_indices(4, 2, 3, step)
    assert list(read_ahead(read, 5, 5)) == []


def test_reading_overlaps_computing():
    """Six steps of 0.05 s and six reads of 0.05 s: 0.6 s one after the other, 0.35 s when overlapped (sleeps need no core)."""

    def read(step):
        return read_batch(("x",), Slow(0.05), 1, seed=0, step=step, rank=0, ranks=1)

    began = time.perf_counter()
    for _ in read_ahead(read, 0, 6):
        time.sleep(0.05)
    assert time.perf_counter() - began < 0.5


def test_an_error_of_the_reader_reaches_the_training():
    def read(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    batches = read_ahead(read, 0, 4)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)


class Recorder(Algorithm):
    """One weight, and a list of what the loop called."""

    reads = ("x",)

    def __init__(self):
        self.settings, self.called = TrainingSettings(learning_rate=0.5), []
        self.networks = {"one": torch.nn.Linear(1, 1)}
        self.optimisers = {"one": torch.optim.SGD([{"params": list(self.networks["one"].parameters()), "rate": 2.0}])}

    def begin_step(self, step, steps):
        self.called.append(("begin", step, steps))

    def learning_rate(self, step, steps):
        self.called.append(("rate", step))
        return super().learning_rate(step, steps)

    def step(self, batch, run=Run()):
        self.called.append(("step", run))
        loss = self.networks["one"](batch["x"][:, None]).mean()
        run.backward(loss)
        return {"loss": loss.detach()}

    def validate(self, batch):
        return {"loss": self.networks["one"](batch["x"][:, None]).mean()}


@pytest.mark.parametrize("fabric", [None, Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")])
def test_a_step_begins_then_has_its_rate_and_gets_its_run(fabric, tmp_path):
    algorithm = Recorder()
    history = fit(algorithm, Slow(), Slow(), tmp_path, steps=2, until=1, validate_every=1, fabric=fabric)
    begin, rate, step = algorithm.called
    assert begin == ("begin", 0, 2) and rate == ("rate", 0) and list(history["step"]) == [1]
    assert algorithm.optimisers["one"].param_groups[0]["lr"] == 0.5 * 2
    run = step[1]
    assert (run.rank, run.processes, run.device) == (0, 1, torch.device("cpu"))
    assert run.precision == ("32-true" if fabric is None else "bf16-mixed")
    assert all(p.grad is not None for p in algorithm.networks["one"].parameters())


def test_a_run_by_default_is_this_process_on_the_cpu():
    weight = torch.ones((), requires_grad=True)
    Run().backward(3 * weight)
    assert weight.grad == 3 and Run() == Run() and Run().processes == 1


def test_a_rate_is_constant_then_falls_to_its_final_value():
    settings = TrainingSettings(learning_rate=1.0, constant_until=0.5, decay_until=1.0, final_learning_rate=0.1)
    rates = [linear_decay(settings, step, 10) for step in (0, 5, 6, 8, 9, 10)]
    assert rates == pytest.approx([1, 1, 0.8, 0.4, 0.2, 0.1])
