"""Simulated subjects of a direction, scanned again: at the source with settings of the target, or at other sites."""

from collections.abc import Iterable, Iterator

import torch
from monai.data import MetaTensor

from medsynth_lib.data.preparation.contract import Contract, prepare
from medsynth_lib.data.simulation.scanner import Site, mixed_site, scan
from medsynth_lib.data.simulation.subject import Subject, make_subject
from medsynth_lib.experiments.adaptation.direction import Direction, Sample


def rescanned(direction: Direction, *causes: str, split: str = "test") -> list[Sample]:
    """Scan a split's subjects at the source with some causes of the shift taken from the target.

    Args:
        direction: of simulated sites.
        causes: as in `scanner.CAUSES`; none gives the source itself.
        split: whose subjects.

    Returns:
        Samples of "x", "y" and "mask", in the manifest's order.
    """
    source, target = (direction.scanners[name] for name in (direction.source, direction.target))
    site = mixed_site(source, target, *causes)
    return [sample for (sample,) in scans(direction, [site], split)]


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
