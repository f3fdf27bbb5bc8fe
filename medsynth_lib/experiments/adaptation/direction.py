"""The data of one direction of adaptation, such as SIMA to SIMB."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.nifti import read_case
from medsynth_lib.data.preparation.contract import Contract, Geometry
from medsynth_lib.data.preparation.pairs import PairedVolumes
from medsynth_lib.data.simulation.scanner import SITES, Site
from medsynth_lib.experiments.lesson_data import volumes
from medsynth_lib.training import segmentation

Sample = dict[str, torch.Tensor]


def simulated_scanners() -> dict[str, Site]:
    """Return the simulated scanners by the name that a manifest gives their site."""
    return {f"SIM{name}": site for name, site in SITES.items()}


@dataclass(frozen=True, eq=False)
class Direction:
    """Volumes of a source and a target site, prepared when they are first asked for, then kept.

    Attributes:
        manifest: of both sites.
        contract: of the inputs and T1.
        source, target: names of the sites in the manifest.
        scanners: site -> its scanner.
    """

    manifest: Manifest
    contract: Contract
    source: str
    target: str
    scanners: Mapping[str, Site] = field(default_factory=simulated_scanners)

    def volumes(self, site: str, split: str, labels: bool = True, **changes) -> PairedVolumes:
        """Prepare the volumes of a site and split.

        Args:
            site: a site of the manifest.
            split: train, tune, adapt or test.
            labels: False leaves the tumour labels unread.
            changes: to the contract; target=None leaves T1 unread.
        """
        manifest = self.manifest if labels else self.manifest.assign(seg="")
        return volumes(manifest, replace(self.contract, **changes), site, split).preload()

    @cached_property
    def train(self) -> PairedVolumes:
        """The source's training pairs."""
        return self.volumes(self.source, "train")

    @cached_property
    def tune(self) -> PairedVolumes:
        """The source's tuning pairs."""
        return self.volumes(self.source, "tune")

    @cached_property
    def source_t1(self) -> torch.Tensor:
        """T1 of the source's training pairs, (n, 1, x, y, z) in [0, 1]."""
        return torch.stack([sample["y"] for sample in self.train])

    @property
    def adapt_split(self) -> str:
        """Split of the adaptation set: "adapt", or "train" for real data without such a split."""
        return "adapt" if (self.manifest.table["split"] == "adapt").any() else "train"

    @cached_property
    def adapt(self) -> PairedVolumes:
        """The target's adaptation set: inputs, without T1 and without labels."""
        return self.volumes(self.target, self.adapt_split, labels=False, target=None)

    @cached_property
    def adapt_pairs(self) -> PairedVolumes:
        """The same subjects with T1. Only rows that say so in their name may read them."""
        return self.volumes(self.target, self.adapt_split, labels=False)

    def four_images(self, site: str, split: str) -> PairedVolumes:
        """Prepare the four images that the tumour segmenter reads, as "x" (4, x, y, z)."""
        return self.volumes(site, split, inputs=segmentation.INPUTS, target=None)

    @cached_property
    def test(self) -> list[tuple[Sample, Sample, Sample]]:
        """Of each test subject: the target's sample, the source's, and the target's four images."""
        sides = (
            self.volumes(self.target, "test"),
            self.volumes(self.source, "test"),
            self.four_images(self.target, "test"),
        )
        return list(zip(*sides, strict=True))

    def scanner_units(
        self, site: str, split: str, modalities: tuple[str, ...], limit: int | None = None
    ) -> list[np.ndarray]:
        """Read images (c, x, y, z) on the contract's grid, in the scanner's units.

        Args:
            site, split: of the manifest.
            modalities: one channel each.
            limit: at most so many subjects.
        """
        # The anchor says where the crop lies, as in `prepare`.
        keys = dict.fromkeys([self.contract.anchor, *modalities])
        chain = Geometry(self.contract, keys)
        scans = self.manifest.select(site=site, split=split).head(limit).scans()
        cases = (chain(read_case(scan, keys, labels=False)) for scan in scans)
        return [np.stack([case[m].as_tensor()[0].numpy() for m in modalities]) for case in cases]
