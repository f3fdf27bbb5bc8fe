"""What the published data sets can give to a lesson: pairs of contrasts, single volumes, or why not."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pairs:
    """Input contrasts and a target of the same subject, at two sites (the slice-VAE paper)."""

    inputs: tuple[str, str]
    target: str
    shift: str  # what tells the two sites apart


@dataclass(frozen=True)
class Volumes:
    """Single volumes (HA-GAN)."""

    modality: str
    kind: str  # "brain" or "thorax"
    note: str


@dataclass(frozen=True)
class Refused:
    """A role that a data set cannot play."""

    reason: str


BRAINS_WITH_TUMOURS = Volumes("t1", "brain", "with tumours")
CT_ALONE = Refused("CT alone, so there is no second contrast to synthesise from")

# Data set -> what it gives in the role "pairs" and in the role "volumes".
ROLES: dict[str, dict[str, Pairs | Volumes | Refused]] = {
    "brats2019": dict(
        pairs=Pairs(("flair", "t2"), "t1", "two centres, CBICA and TCIA (the paper's own)"),
        volumes=BRAINS_WITH_TUMOURS,
    ),
    "brats2020": dict(
        pairs=Pairs(("flair", "t2"), "t1", "two centres, CBICA and TCIA, by name_mapping.csv"),
        volumes=BRAINS_WITH_TUMOURS,
    ),
    "msd_task01": dict(
        pairs=Pairs(("flair", "t2"), "t1", "simulated, on every second subject, since no site is known"),
        volumes=BRAINS_WITH_TUMOURS,
    ),
    "ixi": dict(
        pairs=Pairs(("t2", "pd"), "t1", "three London scanners; the two largest unless real_sites says otherwise"),
        volumes=Volumes("t1", "brain", "healthy adults"),
    ),
    "upenn_gbm": dict(
        pairs=Pairs(("flair", "t2"), "t1", "UPENN and UCSF, both folders in one DATA_DIR"),
        volumes=BRAINS_WITH_TUMOURS,
    ),
    "ucsf_pdgm": dict(
        pairs=Pairs(("flair", "t2"), "t1", "UPENN and UCSF, both folders in one DATA_DIR"),
        volumes=BRAINS_WITH_TUMOURS,
    ),
    "gsp": dict(
        pairs=Refused("T1 alone, so there is no input contrast to pair it with"),
        volumes=Volumes("t1", "brain", "the second paper's own"),
    ),
    "copdgene": dict(pairs=CT_ALONE, volumes=Volumes("ct", "thorax", "the second paper's own")),
    "lidc": dict(pairs=CT_ALONE, volumes=Volumes("ct", "thorax", "with nodules; no spirometry")),
}

# Lesson -> the roles that it needs. Lesson 01 prepares both; 04 simulates and 08 reads no data.
ROLES_OF: dict[str, tuple[str, ...]] = {"01": ("pairs", "volumes"), "02": ("pairs",), "03": ("pairs",), "04": ()}
ROLES_OF |= {lesson: ("volumes",) for lesson in ("05", "06", "07")} | {"08": ()}


def refusal(name: str, role: str) -> str | None:
    """Return why a data set cannot play a role ("pairs" or "volumes").

    Returns:
        None where it can play it, or is none of the published ones.
    """
    part = ROLES.get(name, {}).get(role)
    return part.reason if isinstance(part, Refused) else None


# Lesson -> fewest subjects a split: of pairs at each site that it reads, of volumes in all. Lesson 01 shows what is there.
FEWEST: dict[str, dict[str, int]] = {
    "01": dict(train=1),
    "02": dict(train=1, tune=1, test=1),
    "03": dict(train=2, tune=1),  # a covariance needs two volumes
    "05": dict(train=3, tune=1, test=2),  # two test volumes are compared
    "06": dict(train=3, tune=1, test=2),
    "07": dict(train=4, tune=1, test=2),  # a ridge is chosen by folds within folds
}
SITES_OF = {"01": 2, "02": 2, "03": 1}  # lesson 03 reads its source site alone
