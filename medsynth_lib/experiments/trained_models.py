"""Trained models that are made once: `train_or_load` returns one from the shipped folder, from the cache, or by training.

An artefact is a folder: recipe.yaml, contract.yaml, weights.safetensors, checkpoint.safetensors (trainer state),
history.csv, environment.json. Its name ends in a key made of recipe, data, contract and the algorithm's VERSION, so a
changed number is another artefact, and shipped weights outlive commits that do not change the mathematics.
"""

import functools
import hashlib
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import psutil
import torch
import yaml
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.cubes import CubeContract
from medsynth_lib.files import atomic, cache_folder
from medsynth_lib.profiling import memory
from medsynth_lib.settings import notebooks_folder
from medsynth_lib.training import baselines, hagan, loop, pix2pix, segmentation, svae

ALGORITHMS = {
    "pix2pix": (pix2pix.Pix2Pix, pix2pix.VERSION),
    "svae": (svae.SliceVAE, svae.VERSION),
    "segmentation": (segmentation.Segmenter, segmentation.VERSION),
    "structures": (segmentation.StructureSegmenter, segmentation.STRUCTURES_VERSION),
    "hagan": (hagan.HAGAN, hagan.VERSION),
    **{name: (make, baselines.VERSION) for name, make in baselines.ALGORITHMS.items()},
}
OF_CUBES = ("structures", "hagan", *baselines.ALGORITHMS)


@dataclass
class Trained:
    """A trained model: its networks (by name, in evaluation mode), how it was made, and where it came from."""

    networks: dict
    recipe: dict
    contract: Contract | CubeContract
    history: pd.DataFrame
    environment: dict
    folder: Path
    origin: str  # "shipped", "cached" or "trained now"

    @property
    def steps(self):
        """Steps that were done: those of the recipe, unless the training was stopped before."""
        return int(self.history["step"].iloc[-1])

    def require(self, contract):
        """Raise DataError unless data prepared by this contract may be given to this model."""
        self.contract.require(contract)


def train_or_load(name, recipe, train, tune, fabric=None):
    """The model a recipe describes.

    Args:
        name: readable start of the folder's name, e.g. "pix2pix-SIMA".
        recipe: plain dictionary with ``algorithm``, ``steps``, ``batch_size``, ``validate_every``, ``seed`` and what the
            algorithm reads; everything in it is part of the key.
        train, tune: PairedVolumes, or Cubes, of one contract.

    With MEDSYNTH_COMPILE=1 networks are compiled (torch.compile): other rounding and other seconds.
    An interrupted training goes on from its checkpoint at the next call. Where memory runs out, the error says what to change.
    Raises ValueError for a damaged artefact, naming the folder to delete.
    """
    train.contract.require(tune.contract)
    fabric = fabric or default_fabric()
    key = artefact_key(recipe, train, tune)
    for origin, folder in (
        ("shipped", notebooks_folder() / "pretrained" / f"{name}-{key}"),
        ("cached", cache_folder("artefacts") / f"{name}-{key}"),
    ):
        if (folder / "weights.safetensors").exists():  # written last: it marks the artefact as complete
            return load(folder, origin, fabric.device)
    train[0]  # what is made when it is first asked for is made now, where Ctrl-C stops it
    began = time.perf_counter()
    make, _ = ALGORITHMS[recipe["algorithm"]]
    torch.manual_seed(recipe["seed"])
    algorithm = make(recipe)
    if compiles():
        for part in algorithm.optimisers:
            algorithm.networks[part].compile()  # at its first call
    settings = {k: recipe[k] for k in ("steps", "seed", "batch_size", "validate_every")}
    try:
        loop.fit(algorithm, train, tune, folder, **settings, fabric=fabric)
    except (RuntimeError, MemoryError) as error:
        text = memory_advice(error, recipe, train[0], fabric.device) if memory.is_out_of_memory(error) else None
        if text is None:
            raise
        kind = next(kind for kind in (torch.OutOfMemoryError, MemoryError, RuntimeError) if isinstance(error, kind))
        raise kind(text) from error  # NumPy's own kind of MemoryError cannot be made from a text
    save(folder, algorithm, recipe, train.contract, fabric.device, time.perf_counter() - began)
    return load(folder, "trained now", fabric.device)


def memory_advice(error, recipe, sample, device):
    """The planner's advice after an out-of-memory error in the training of a recipe; ``sample``: one of the data set."""
    make, _ = ALGORITHMS[recipe["algorithm"]]
    on_gpu = device.type == "cuda"
    available = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    batch = recipe["batch_size"]
    if recipe["algorithm"] == "hagan":

        def build(size, sub_volume, **lean):
            return make(recipe | dict(size=size, fraction=sub_volume) | lean)

        others = [] if recipe["lean"] else [("lean form", functools.partial(build, lean=True))]
        setting = memory.Setting(recipe["size"], batch, sub_volume=recipe["fraction"])
        return memory.advice(error, build, setting, available, others)
    if recipe["algorithm"] in baselines.ALGORITHMS:

        def build(size):
            return make(recipe | dict(size=size))

        return memory.advice(error, build, memory.Setting(recipe["size"], batch), available)
    return memory.advice(error, lambda: make(recipe), memory.Setting(None, batch), available, sample=sample)


def default_fabric():
    """One GPU where there is one, else the CPU, and not a Mac's MPS: exact resume is promised on the CPU.

    MEDSYNTH_PRECISION: "32-true", the default, or "bf16-mixed". (Of "16-mixed", the scale of one network's loss would be
    applied to the next, since several take their steps in turn.)
    """
    if precision() not in ("32-true", "bf16-mixed"):
        raise ValueError(f"MEDSYNTH_PRECISION is {precision()!r}; set it to 32-true or bf16-mixed")
    return Fabric(accelerator="cuda" if torch.cuda.is_available() else "cpu", devices=1, precision=precision())


def precision():
    return os.environ.get("MEDSYNTH_PRECISION") or "32-true"


def compiles():
    return os.environ.get("MEDSYNTH_COMPILE") == "1"


def artefact_key(recipe, train, tune):
    """Eight hexadecimal digits that change with recipe, scans, preprocessing, precision and the algorithm's VERSION."""
    _, algorithm_version = ALGORITHMS[recipe["algorithm"]]
    scans = [scan_identity(row, data) for data in (train, tune) for _, row in data.frame.iterrows()]
    other = [] if precision() == "32-true" else [precision()]
    text = json.dumps([recipe, algorithm_version, scans, asdict(train.contract), *other], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def scan_identity(row, data):
    """What tells one scan from another: the simulation that made it or, for real data, the hashes of its files."""
    if str(row.get("source", "")).startswith("simulated"):
        return [row["subject"], row["site"], row["source"]]
    root = Path(data.frame.attrs["root"])
    return [hashlib.sha256((root / row[m]).read_bytes()).hexdigest() for m in data.contract.modalities]


def save(folder, algorithm, recipe, contract, device, seconds):
    """Complete an artefact folder, weights last."""
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    contract.save(folder / "contract.yaml")
    environment = dict(
        medsynth=version("medsynth"),
        torch=torch.__version__,
        python=platform.python_version(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
        precision=precision(),
        compiled=compiles(),
        seconds_in_last_session=round(seconds, 1),
    )
    write_text(folder / "environment.json", json.dumps(environment, indent=1))
    tensors = {
        f"{name}/{k}": v.detach().cpu().contiguous()
        for name, network in algorithm.networks.items()
        for k, v in network.state_dict().items()
    }
    with atomic(folder / "weights.safetensors") as temporary:
        save_file(tensors, temporary)


def write_text(path, text):
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load(folder, origin, device="cpu"):
    """Read an artefact folder to a device; half-precision (shipped) weights become float32, and where of a network its
    running mean alone was shipped, both are the mean.
    """
    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        tensors = load_file(folder / "weights.safetensors")
        algorithm = ALGORITHMS[recipe["algorithm"]][0](recipe)
        for name, network in algorithm.networks.items():
            stored = name if any(k.startswith(f"{name}/") for k in tensors) else f"mean {name}"
            own = {k.removeprefix(f"{stored}/"): v.float() for k, v in tensors.items() if k.startswith(f"{stored}/")}
            network.load_state_dict(own)
            network.to(device).eval()
        return Trained(
            algorithm.networks,
            recipe,
            (CubeContract if recipe["algorithm"] in OF_CUBES else Contract).load(folder / "contract.yaml"),
            pd.read_csv(folder / "history.csv"),
            json.loads((folder / "environment.json").read_text(encoding="utf-8")),
            folder,
            origin,
        )
    except Exception as error:
        raise ValueError(f"{folder}: damaged artefact ({error}); delete the folder to train it again") from error


def ship(folder, target):
    """Copy an artefact for shipping: weights and all texts, in half precision, without the trainer's state.

    Of a network with a running mean only that is copied.
    """
    folder, target = Path(folder), Path(target) / Path(folder).name
    names = ("recipe.yaml", "contract.yaml", "history.csv", "environment.json")
    texts = {name: (folder / name).read_bytes() for name in names}
    tensors = load_file(folder / "weights.safetensors")
    weights = {k: v.half() for k, v in tensors.items() if f"mean {k}" not in tensors}
    if target.exists():
        shutil.rmtree(target)
    with atomic(target) as temporary:
        temporary.mkdir()
        for name, content in texts.items():
            (temporary / name).write_bytes(content)
        save_file(weights, temporary / "weights.safetensors")
