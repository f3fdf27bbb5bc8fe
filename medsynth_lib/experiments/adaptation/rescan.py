"""Simulated subjects of a direction, scanned again at other sites."""

from collections.abc import Iterable, Iterator

import torch
from monai.data import MetaTensor

from medsynth_lib.data.preparation.contract import Contract, prepare
from medsynth_lib.data.simulation.scanner import Site, scan
from medsynth_lib.data.simulation.subject import Subject, make_subject
from medsynth_lib.experiments.adaptation.direction import Direction, Sample


def scans(direction: Direction, sites: Iterable[Site], split: str = "test") -> Iterator[list[Sample]]:
    """Yield the samples of each subject of a split at several sites, in the manifest's order.

    To make a subject takes most of the time, and many subjects at once do not fit into memory.
    """
    sites = list(sites)
    for found in direction.manifest.select(site=direction.source, split=split).scans():
        subject = make_subject(int(found["subject"]), found.shape, found["spacing_mm"])
        yield [scanned(subject, site, direction.contract) for site in sites]


def scanned(subject: Subject, site: Site, contract: Contract) -> Sample:
    """Scan one simulated subject at a site and prepare the images."""
    affine = torch.from_numpy(subject.affine)
    images = {m: MetaTensor(torch.from_numpy(scan(subject, site, m))[None], affine=affine) for m in contract.modalities}
    return prepare(images, contract)
