"""What lesson 08 measures: training steps of HA-GAN and its baselines, accounted or read from the committed run on a GPU."""

import json
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from medsynth_lib.evaluation.hagan_inference import sample
from medsynth_lib.profiling.ledger import Account, Training, account
from medsynth_lib.profiling.networks import baseline, hagan, unsupervised
from medsynth_lib.profiling.planner import TIGHT
from medsynth_lib.profiling.report import GIB, MIB, Report, make_report
from medsynth_lib.settings import REPO
from medsynth_lib.training.hagan import HAGAN
from medsynth_lib.training.loop import Algorithm

Made = TypeVar("Made")
RESULTS = REPO / "benchmarks" / "results"
PAPERS_SHARE = 1 / 8  # of the slices, in a sub-volume
FINEST = {"Progressive GAN": 16}  # channels at full resolution; of the other baselines 64
LEVERS = ("up-sampling", "activations", "optimiser state")  # parts of the lean form, in the order they are added
RUNGS = {  # name of a lever -> what HA-GAN is built with once it and those before it are added
    "multiplier 1/2": dict(sub_volume=1 / 2),
    "sub-volume": {},
    "fused up-sampling": dict(levers=LEVERS[:1]),
    "stored activations": dict(levers=LEVERS[:2]),
    "optimiser state": dict(levers=LEVERS),
    "one graph at a time": dict(lean=True),
    "checkpointing": dict(lean=True, checkpoint=True),
}


class Steps:
    """Account training steps of HA-GAN and its baselines, each once.

    Args:
        batch: volumes in a batch.
        narrower: the paper's widths are divided by this number.
    """

    def __init__(self, batch: int = 2, narrower: int = 1):
        self.batch, self.narrower, self.reports = batch, narrower, {}

    def build(self, model: str, size: int, **changes) -> Algorithm:
        """Build HA-GAN or a baseline.

        Args:
            model: "HA-GAN" or one of `networks.BASELINES`.
            size: voxels along each axis.
            changes: of HA-GAN, arguments of `networks.hagan`; of a baseline its ``width``.
        """
        if model == "HA-GAN":
            return hagan(size, latent=1024 // self.narrower, c=32 // self.narrower, **changes)
        width = changes.get("width", FINEST.get(model, 64))
        return baseline(model, size, 1000 // self.narrower, width // self.narrower, 512 // self.narrower)

    def training(self, model: str, size: int, **changes) -> Training:
        """Make the training whose step is accounted."""
        return unsupervised(self.build(model, size, **changes), self.batch, size)

    def report(self, model: str, size: int, **changes) -> Report:
        """Account one training step; see `build` for the arguments."""
        changes = {k: v for k, v in changes.items() if (k, v) != ("sub_volume", PAPERS_SHARE)}  # that is the default
        key = model, size, *sorted(changes.items())
        if key not in self.reports:
            self.reports[key] = account(lambda: self.training(model, size, **changes))
        return self.reports[key]


def peak_while(make: Callable[[], Made]) -> tuple[Made, float]:
    """Make something with real tensors, and account the memory that it takes meanwhile.

    Returns:
        What was made, and the MiB that were alive at most: new tensors, and older ones that were used.
    """
    with Account() as events:
        made = make()
    return made, make_report(events.events).peak / MIB


def running_mean(report: Report) -> float:
    """Take the MiB of the running mean of the generator, which the paper's step lacks."""
    return report.layers["parameters"].filter(regex="^mean ").sum() / MIB


def papers_peak(report: Report) -> float:
    """Take the peak of a step without the running mean of the generator, in MiB."""
    return report.peak / MIB - running_mean(report)


def verdict(gib: float, card: float = 16.0) -> str:
    """Say in words whether an estimate in GiB fits a card of so many GiB."""
    return f"does not fit {card:g} GB" if gib > card else "fits" if gib <= card * TIGHT else "fits, but tightly"


# -- the committed run on a GPU --------------------------------------------------------------------------------------------


def written_run() -> tuple[pd.DataFrame, dict[str, str]]:
    """Read the committed run on a GPU.

    Returns:
        A row a training step, with "allocated", "reserved" and "driver" in GiB; and the machine: "device", "torch".
    """
    run = json.loads((RESULTS / "memory-cuda.json").read_text(encoding="utf-8"))
    rows = pd.DataFrame(run["rows"]).rename(columns=lambda column: column.removesuffix("_gib"))
    return rows, run["machine"]


def written_step(rows: pd.DataFrame, size: int, batch: int, share: float = PAPERS_SHARE) -> pd.Series | None:
    """Find HA-GAN's step in single precision in `written_run`: a row in GiB, or None."""
    found = rows.query("network == 'HA-GAN' and precision == 'fp32' and size == @size and batch == @batch")
    found = found[found["sub_volume"].fillna(PAPERS_SHARE) == share]
    return found.iloc[0] if len(found) else None


def driver_memory(rows: pd.DataFrame, steps: Steps, size: int, share: float = PAPERS_SHARE) -> float:
    """Take the MiB in use on the card in HA-GAN's step, less the running mean.

    The step is that of `written_run`; nan for other widths.
    """
    step = written_step(rows, size, steps.batch, share) if steps.narrower == 1 else None
    return np.nan if step is None else 1024 * step["driver"] - running_mean(steps.report("HA-GAN", size))


def written_bytes(rows: pd.DataFrame, steps: Steps, sizes: Sequence[int]) -> dict[int, dict[str, float]]:
    """Take the bytes that HA-GAN's step needed in `written_run`, by size.

    There is nothing for other widths or another batch.
    """
    if (steps.narrower, steps.batch) != (1, 2):
        return {}
    found = {size: written_step(rows, size, steps.batch) for size in sizes}
    return {size: {way: step[way] * GIB for way in ("allocated", "reserved", "driver")} for size, step in found.items()}


def against_estimate(rows: pd.DataFrame, steps: Steps, estimated: pd.DataFrame) -> pd.DataFrame:
    """Hold what a card needed against the planner's estimate, without HA-GAN's running mean.

    Args:
        rows: of `written_run`.
        steps: accounted ones.
        estimated: GiB on a card; a row a size, a column a network.

    Returns:
        A row a size and network of the committed run, in GiB; empty for other widths or another batch.
    """
    estimate = estimated.stack().rename_axis(["size", "network"]).rename("estimated (section 5)")
    table = rows.query("precision == 'fp32' and sub_volume.isna() and batch == 2").set_index(["size", "network"])
    table = table if (steps.narrower, steps.batch) == (1, 2) else table[:0]
    columns = ["allocated", "reserved", "driver"]
    both = table[columns].join(estimate, how="inner")
    for size in (size for size, network in both.index if network == "HA-GAN"):
        both.loc[(size, "HA-GAN"), columns] -= running_mean(steps.report("HA-GAN", size)) / 1024
    if len(both):
        both["driver / estimated"] = both["driver"] / both["estimated (section 5)"]
        needed = both["allocated"] + both["driver"] - both["reserved"]  # without the blocks kept for later
        both["(allocated + context) / estimated"] = needed / both["estimated (section 5)"]
    return both


def written_seconds() -> tuple[pd.DataFrame, dict[str, str], dict[str, list[str]]]:
    """Read the committed step times of HA-GAN at 256^3 on a GPU.

    Returns:
        A row a precision and form, with "iteration" in seconds and "peak_gib"; the machine; and notes by precision.
    """
    rows, notes = [], {}
    for precision in ("fp32", "tf32", "bf16"):
        run = json.loads((RESULTS / f"hagan_step-cuda-256-{precision}.json").read_text(encoding="utf-8"))
        rows += [row for row in run["rows"] if "precision" in row]
        notes[precision] = [row["note"] for row in run["rows"] if "note" in row]
    return pd.DataFrame(rows).set_index(["precision", "form"]), run["machine"], notes


# -- levers and costs ------------------------------------------------------------------------------------------------------


def lever_table(ladder: dict[str, Report], predictions: dict[str, float | None]) -> pd.DataFrame:
    """Say what each lever saves, and who holds the peak once it is added.

    Args:
        ladder: reports by lever, each with those before it; the first one is where the levers start.
        predictions: percent saved, by lever; None for no idea.
    """
    saved = levers_save(ladder)
    columns = {"you (% saved)": pd.Series(predictions, dtype=object), "accounted (% saved)": saved.round(1)}
    table = pd.DataFrame(columns).loc[saved.index]
    added = [ladder[name] for name in saved.index]
    table["peak in"] = [report.phases["peak"].idxmax() for report in added]
    table["largest layer"] = [report.largest_layer() for report in added]
    for part in ("activations", "temporaries", "gradients"):
        table[f"{part} (MiB)"] = [round(report.parts[part] / MIB) for report in added]
    table["largest part"] = [max(report.parts, key=lambda part: report.parts[part]) for report in added]
    return table


def levers_save(ladder: dict[str, Report]) -> pd.Series:
    """Take the percent of the peak that each lever saves, after the levers before it."""
    return -100 * pd.Series({name: papers_peak(report) for name, report in ladder.items()}).pct_change().iloc[1:]


def one_volume(use: str, algorithm: HAGAN) -> Training:
    """Train, encode or generate with one volume, as a Training whose step does it.

    Args:
        use: "training", "encoding" or "generation".
        algorithm: a HAGAN.
    """
    size, nets = algorithm.size, algorithm.networks
    x, code = torch.rand(1, 1, size, size, size), torch.randn(1, algorithm.settings.latent)
    steps = {
        "training": lambda: algorithm.step({"x": x}),
        "encoding": torch.no_grad()(lambda: nets["E^G"](algorithm.features(x))),
        "generation": lambda: sample(nets["G^A"], nets["G^H"], code),
    }
    return Training(steps[use], nets, algorithm.optimisers, {"x": x})


def fastest_seconds(training: Training, repeats: int) -> float:
    """Time a step: the fastest of a few after a first one.

    Other programs can only add to the time.
    """
    took = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        training.step()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def cost_table(make: Callable[[int], HAGAN], sizes: Sequence[int], repeats: int) -> pd.DataFrame:
    """Measure what one volume costs in training, encoding and generation.

    Args:
        make: size -> a HAGAN.
        sizes: voxels along each axis.
        repeats: timed runs.

    Returns:
        A row a use and size S: "seconds", "bytes" without parameters and optimiser state, and both by voxel.
    """
    rows, models = [], {size: make(size) for size in sizes}
    for use in ("training", "encoding", "generation"):
        for size in sizes:
            parts = account(lambda use=use, size=size: one_volume(use, make(size))).parts  # type: ignore[misc]
            used = sum(v for part, v in parts.items() if part not in ("parameters", "optimiser state"))
            seconds = fastest_seconds(one_volume(use, models[size]), repeats)
            rows.append({"use": use, "S": size, "seconds": seconds, "bytes": used})
    table = pd.DataFrame(rows)
    voxels = table["S"] ** 3
    return table.assign(**{"ns / voxel": 1e9 * table["seconds"] / voxels, "bytes / voxel": table["bytes"] / voxels})


def power_law(table: pd.DataFrame, quantity: str) -> pd.Series:
    """Fit cost ~ V^p with V = S^3 to `cost_table`: p by use."""
    return pd.Series(
        {
            use: np.polyfit(np.log(part["S"] ** 3), np.log(part[quantity]), 1)[0]
            for use, part in table.groupby("use", sort=False)
        }
    )
