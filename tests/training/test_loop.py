"""Reading ahead: a step never waits for a batch that could have been read while the last one was computed."""

import time

import pytest
import torch

from medsynth_lib.training.loop import batch_indices, read_ahead, read_batch


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
