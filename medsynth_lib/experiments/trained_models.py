"""Trained models that are made once: `train_or_load` returns one from the shipped folder, from the cache, or by training.

An artefact is a folder: recipe.yaml (algorithm and settings), contract.yaml, weights.safetensors, checkpoint.safetensors
(trainer's state), history.csv, environment.json. Its name ends in a key made of settings, data, contract and the algorithm's
VERSION. So a changed number is another artefact, and shipped weights outlive commits that leave the mathematics alone.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset

from medsynth_lib import settings as lessons
from medsynth_lib.data.preparation.contract import Contract, SavedContract
from medsynth_lib.data.preparation.cubes import CubeContract
from medsynth_lib.experiments.computer import compiles, default_fabric, environment, precision
from medsynth_lib.experiments.memory_advice import with_advice
from medsynth_lib.files import atomic, cache_folder, fingerprint
from medsynth_lib.settings import TrainingSettings, notebooks_folder
from medsynth_lib.training import baselines, baselines_published, hagan, hagan_build, loop, pix2pix, segmentation, svae
from medsynth_lib.training.loop import Algorithm

TEXTS = ("recipe.yaml", "contract.yaml", "history.csv", "environment.json")


@dataclass(frozen=True)
class Kind:
    """An algorithm whose trained models are kept."""

    settings: type[TrainingSettings]
    build: Callable[[Any], Algorithm]  # of its settings
    version: int  # of its mathematics
    contract: type[SavedContract] = Contract  # by which its data are prepared


KINDS = (
    Kind(lessons.Pix2PixSettings, pix2pix.Pix2Pix, pix2pix.VERSION),
    Kind(lessons.SliceVAESettings, svae.SliceVAE, svae.VERSION),
    Kind(lessons.SegmenterSettings, segmentation.Segmenter, segmentation.VERSION),
    Kind(lessons.StructureSettings, segmentation.StructureSegmenter, segmentation.STRUCTURES_VERSION, CubeContract),
    *(Kind(form, hagan_build.build, hagan.VERSION, CubeContract) for form in hagan_build.FORMS),
    Kind(lessons.WGANSettings, baselines.WGAN, baselines.VERSION, CubeContract),
    Kind(lessons.VAEGANSettings, baselines.VAEGAN, baselines.VERSION, CubeContract),
    Kind(lessons.AlphaGANSettings, baselines.AlphaGAN, baselines.VERSION, CubeContract),
    Kind(lessons.PublishedWGANSettings, baselines_published.PublishedWGAN, baselines.VERSION, CubeContract),
    Kind(lessons.PublishedVAEGANSettings, baselines_published.PublishedVAEGAN, baselines.VERSION, CubeContract),
    Kind(lessons.PublishedAlphaGANSettings, baselines_published.PublishedAlphaGAN, baselines.VERSION, CubeContract),
    Kind(lessons.ProgressiveGANSettings, baselines.ProgressiveGAN, baselines.VERSION, CubeContract),
)
ALGORITHMS = {kind.settings.algorithm: kind for kind in KINDS}


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        networks: by name, in evaluation mode.
        settings: of its training.
        contract: by which its data were prepared.
        history: a row per `settings.validate_every` steps.
        environment: what it was trained on.
        folder: of the artefact.
        origin: "shipped", "cached" or "trained now".
    """

    networks: dict[str, nn.Module]
    settings: Any  # TrainingSettings of its algorithm
    contract: Any  # Contract, or CubeContract of single volumes
    history: pd.DataFrame
    environment: dict[str, Any]
    folder: Path
    origin: str

    @property
    def steps(self) -> int:
        """Steps that were done: those of the settings, unless the training was stopped before."""
        return int(self.history["step"].iloc[-1])

    def require(self, contract: Contract | CubeContract) -> None:
        """Raise DataError unless data prepared by this contract may be given to this model."""
        self.contract.require(contract)


def train_or_load(
    name: str, settings: TrainingSettings, train: Dataset, tune: Dataset, fabric: Fabric | None = None
) -> Trained:
    """Return the model of these settings and data.

    An interrupted training goes on from its checkpoint.

    Args:
        name: readable start of the folder's name, such as "pix2pix-SIMA".
        settings: of the training; all of them are part of the key.
        train, tune: data sets with a `manifest` and one `contract`, such as `PairedVolumes`.
        fabric: of the training; None takes `default_fabric`.

    Raises:
        ValueError: for a damaged artefact, naming the folder to delete.
        RuntimeError, MemoryError: where memory runs out; the error says what to change.
    """
    train.contract.require(tune.contract)
    fabric = fabric or default_fabric()
    folder_name = f"{name}-{artefact_key(settings, train, tune)}"
    for origin, place in (("shipped", notebooks_folder() / "pretrained"), ("cached", cache_folder("artefacts"))):
        folder = place / folder_name
        if (folder / "weights.safetensors").exists():  # written last: it marks the artefact as complete
            return load(folder, origin, fabric.device)
    train_artefact(folder, settings, train, tune, fabric)
    return load(folder, "trained now", fabric.device)


def train_artefact(folder: Path, settings: TrainingSettings, train: Dataset, tune: Dataset, fabric: Fabric) -> None:
    """Train a model and keep it in a folder; arguments as in `train_or_load`."""
    train[0]  # what is made when it is first asked for is made now, where Ctrl-C stops it
    began = time.perf_counter()
    build = ALGORITHMS[settings.algorithm].build
    torch.manual_seed(settings.seed)
    algorithm = build(settings)
    if compiles():
        for part in algorithm.optimisers:
            algorithm.networks[part].compile()  # at its first call
    length = dict(steps=settings.steps, batch_size=settings.batch_size, validate_every=settings.validate_every)
    try:
        loop.fit(algorithm, train, tune, folder, **length, seed=settings.seed, fabric=fabric)
    except (RuntimeError, MemoryError) as error:
        advised = with_advice(error, build, settings, train[0], fabric.device)
        if advised is None:
            raise
        raise advised from error
    save(folder, algorithm, train.contract, environment(fabric.device, time.perf_counter() - began))


def artefact_key(settings: TrainingSettings, train: Dataset, tune: Dataset) -> str:
    """Fingerprint settings, scans, preparation, precision and VERSION: eight digits."""
    scans = [scan.identity(data.contract.modalities) for data in (train, tune) for scan in data.manifest.scans()]
    other = [] if precision() == "32-true" else [precision()]
    version = ALGORITHMS[settings.algorithm].version
    return fingerprint(settings.algorithm, settings, version, scans, train.contract, *other, digits=8)


# -- folders -----------------------------------------------------------------------------------------------------------------


def save(folder: Path, algorithm: Algorithm, contract: Contract | CubeContract, about: dict[str, Any]) -> None:
    """Complete an artefact's folder, weights last.

    Args:
        folder: of the artefact; it holds history.csv.
        algorithm: that was trained.
        contract: of its data.
        about: what it was trained on, as in `environment`.
    """
    recipe = dict(algorithm=algorithm.settings.algorithm) | dataclasses.asdict(algorithm.settings)
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    contract.save(folder / "contract.yaml")
    write_text(folder / "environment.json", json.dumps(about, indent=1))
    tensors = {
        f"{name}/{k}": v.detach().cpu().contiguous()
        for name, network in algorithm.networks.items()
        for k, v in network.state_dict().items()
    }
    with atomic(folder / "weights.safetensors") as temporary:
        save_file(tensors, temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_settings(path: Path) -> TrainingSettings:
    """Read recipe.yaml: an algorithm's name and every one of its settings.

    Raises:
        ValueError: for an unknown algorithm, and for settings that are unknown or missing.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    algorithm = values.pop("algorithm", None)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm {algorithm!r} is unknown; known are {', '.join(ALGORITHMS)}")
    cls = ALGORITHMS[algorithm].settings
    wrong = {field.name for field in dataclasses.fields(cls)} ^ set(values)
    if wrong:
        raise ValueError(f"{path.name}: {', '.join(sorted(wrong))} unknown or missing")
    return cls(**values)


def load(folder: Path, origin: str, device: torch.device | str = "cpu") -> Trained:
    """Read an artefact's folder to a device.

    Half-precision (shipped) weights become float32. Where of a network its running mean alone was shipped, both are the mean.

    Args:
        folder: of the artefact.
        origin: what `Trained.origin` will say.
        device: for the networks.

    Raises:
        ValueError: for a folder that holds no model, and for a damaged artefact.
    """
    if not any((folder / name).is_file() for name in ("recipe.yaml", "weights.safetensors")):
        inside = sorted(path.parent.name for path in folder.glob("*/recipe.yaml"))
        hint = f", such as {inside[0]} in it" if inside else ""
        raise ValueError(f"{folder}: holds no trained model (recipe.yaml); give the folder of one{hint}.")
    try:
        settings = read_settings(folder / "recipe.yaml")
        tensors = load_file(folder / "weights.safetensors")
        kind = ALGORITHMS[settings.algorithm]
        networks = kind.build(settings).networks
        for name, network in networks.items():
            stored = name if any(k.startswith(f"{name}/") for k in tensors) else f"mean {name}"
            own = {k.removeprefix(f"{stored}/"): v.float() for k, v in tensors.items() if k.startswith(f"{stored}/")}
            network.load_state_dict(own)
            network.to(device).eval()
        contract = kind.contract.load(folder / "contract.yaml")
        history = pd.read_csv(folder / "history.csv")
        about = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        return Trained(networks, settings, contract, history, about, folder, origin)
    except Exception as error:
        raise ValueError(f"{folder}: damaged artefact ({error}); delete the folder to train it again") from error


def ship(folder: Path | str, target: Path | str) -> None:
    """Copy an artefact for shipping: its texts, and its weights in half precision.

    The trainer's state is not copied. Of a network with a running mean only the mean is copied.

    Args:
        folder: of the artefact.
        target: folder of the shipped artefacts; the copy keeps its name.
    """
    folder, target = Path(folder), Path(target) / Path(folder).name
    texts = {name: (folder / name).read_bytes() for name in TEXTS}
    tensors = load_file(folder / "weights.safetensors")
    weights = {k: v.half() for k, v in tensors.items() if f"mean {k}" not in tensors}
    if target.exists():
        shutil.rmtree(target)
    with atomic(target) as temporary:
        temporary.mkdir()
        for name, content in texts.items():
            (temporary / name).write_bytes(content)
        save_file(weights, temporary / "weights.safetensors")
