"""Simulated chest CT: a subject made of distance functions, whose volumes of lung, fat, bone and emphysema are known.

Every structure is a signed distance in mm, positive inside, and a voxel takes the share of it that the distance says
(`share`), so that one seed has the same volumes on every grid. Positions are RAS millimetres: x to the right, y to the
front, z to the head. Shapes and sizes are this course's own inventions in the range of anatomy, not a fitted atlas.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medsynth_lib.data.simulation.fields import WORLD_MM, gaussian_blur, random_field

FIELD_OF_VIEW = (420.0, 340.0, 350.0)  # mm; a cube of voxels is anisotropic, as after HA-GAN's resizing
CENTRE = (0.0, -8.0, -10.0)  # of the field of view in the subject's coordinates, mm
STREAMS = {
    name: i for i, name in enumerate(("person", "warp", "texture", "emphysema", "tree", "lung function", "noise"))
}

# Hounsfield units. Air is -1000 by definition; fat, muscle, blood and bone as in textbooks of CT; inflated lung and
# emphysema lie on either side of the -950 HU of evaluation/ct.py. All rounded.
HOUNSFIELD = dict(
    air=-1000.0,
    fat=-100.0,
    soft=45.0,
    organ=60.0,
    cartilage=95.0,
    marrow=220.0,
    cortical=550.0,
    lung=-860.0,
    emphysema=-995.0,
)
MATERIALS = tuple(HOUNSFIELD)

Body = dict[str, float]  # sizes of a subject in mm
Tube = tuple[np.ndarray, np.ndarray, float]  # start (3), end (3) and radius in mm


@dataclass(frozen=True)
class Thorax:
    """One inspiratory scan.

    Attributes:
        hu: float32 (x, y, z).
        spacing: voxel size (3) in mm.
        fractions: shares (9, x, y, z) of `MATERIALS` in every voxel; they sum to 1.
        truth: lung_ml (with the vessels inside), emphysema_percent of it, fat_ml, bone_ml, fev1pp (percent of predicted) and
            fev1_fvc.
    """

    seed: int
    hu: np.ndarray
    spacing: tuple
    fractions: torch.Tensor
    truth: dict

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to RAS millimetres."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [c - (n - 1) / 2 * s for c, n, s in zip(CENTRE, self.hu.shape, self.spacing, strict=True)]
        return affine


class Canvas:
    """The grid, the subject's coordinates on it, and the materials painted; later paint covers earlier."""

    def __init__(self, seed: int, shape: Sequence[int]):
        self.spacing = tuple(f / n for f, n in zip(FIELD_OF_VIEW, shape, strict=True))
        self.voxel = float(np.mean(self.spacing))
        self.axes = [c + (np.arange(n) - (n - 1) / 2) * s for c, n, s in zip(CENTRE, shape, self.spacing, strict=True)]
        grid = torch.meshgrid(*(torch.from_numpy(a).float() for a in self.axes), indexing="ij")
        rng = generator(seed, "warp")
        bend = 2.5 * self.field(rng, 45, 3) + 0.6 * self.field(rng, 14, 3)
        self.xyz = torch.stack(grid) + bend
        self.fractions = torch.zeros(len(MATERIALS), *shape)
        self.fractions[MATERIALS.index("air")] = 1

    def field(self, rng: np.random.Generator, scale: float, channels: int = 1) -> torch.Tensor:
        """Draw a random field (channels, x, y, z) of unit variance.

        `random_field` covers the head, so its world is stretched.

        Args:
            rng: of the draw.
            scale: correlation length in mm.
            channels: independent fields.
        """
        k = WORLD_MM / 480.0
        return random_field(rng, [k * a for a in self.axes], k * scale, channels)

    def share(self, distance: torch.Tensor, low: float = 0.0, high: float = np.inf) -> torch.Tensor:
        """Return the share of every voxel whose distance lies between two limits.

        A voxel is taken as a cube of the mean size met face on. That is right on average over where a surface lies between
        voxels. A slab along the grid may be off by a tenth of a voxel.

        Args:
            distance: to a surface (x, y, z) in mm.
            low, high: limits in mm.
        """
        h = self.voxel
        return ((distance + h / 2).clamp(max=high) - (distance - h / 2).clamp(min=low)).clamp(min=0) / h

    def paint(self, material: str, share: torch.Tensor) -> None:
        """Cover a share (0 to 1) of every voxel with a material."""
        self.fractions *= 1 - share
        self.fractions[MATERIALS.index(material)] += share

    def ml(self, *materials: str) -> float:
        """Return the volume of materials in millilitres."""
        total = sum(self.fractions[MATERIALS.index(m)].sum(dtype=torch.float64) for m in materials)
        return float(total * np.prod(self.spacing) / 1000)


def generator(seed: int, stream: str) -> np.random.Generator:
    """Return a random stream a part: a changed part leaves the others alone."""
    return np.random.default_rng([seed, 7, STREAMS[stream]])


def make_thorax(seed: int, shape: Sequence[int] = (64, 64, 64), noise: bool = True) -> Thorax:
    """Simulate one chest CT over `FIELD_OF_VIEW`.

    Args:
        seed: non-negative integer; the same seed is the same subject on every grid.
        shape: voxels (x, y, z); below about 48 along an axis ribs and vessels blur away.
        noise: with the scanner's noise, or noise-free.

    Returns:
        A chest with HU from -1024 up to those of dense bone, 550, and its noise.
    """
    person, canvas = draw_person(seed), Canvas(seed, shape)
    texture = canvas.field(generator(seed, "texture"), 12)[0]
    x, y, z = canvas.xyz / person["scale"]
    wall = chest_wall(canvas, person, x, y, z, texture)
    middle = mediastinum(person, x, y, z)
    domes = [dome(side, x, y, person) for side in (1, -1)]
    abdomen(canvas, wall, x, y, z, domes, person, texture)
    canvas.paint("soft", canvas.share(middle) * canvas.share(-wall))
    lungs = torch.maximum(*(lung(side, x, y, z, wall, d, person) for side, d in zip((1, -1), domes, strict=True)))
    lungs = torch.minimum(lungs, -middle - 1.5)
    skeleton(canvas, person, x, y, z, wall)
    inside = canvas.share(lungs)
    fill_lungs(canvas, seed, person, inside, x, y, z, texture)
    trees(canvas, seed, person, lungs, inside)
    lung_ml = float(inside.sum(dtype=torch.float64) * np.prod(canvas.spacing) / 1000)
    emphysema_percent = 100 * canvas.ml("emphysema") / lung_ml  # what fissures, vessels and bronchi have left of it
    truth = dict(
        seed=seed,
        lung_ml=lung_ml,
        emphysema_percent=emphysema_percent,
        fat_ml=canvas.ml("fat"),
        bone_ml=canvas.ml("cortical", "marrow"),
        **lung_function(seed, emphysema_percent),
    )
    hu = hounsfield(canvas, person, y, z, texture)
    if noise:
        rng = generator(seed, "noise")
        grain = torch.from_numpy(rng.standard_normal((1, *shape), dtype=np.float32))
        hu = hu + gaussian_blur(grain, [0.6] * 3)[0] * float(rng.uniform(25, 60))
    return Thorax(seed, hu.clamp(min=-1024).numpy(), canvas.spacing, canvas.fractions, truth)


def draw_person(seed: int) -> Body:
    """Draw sizes in mm, such that skin and lungs stay inside `FIELD_OF_VIEW`."""
    rng = generator(seed, "person")
    scale = float(np.exp(np.clip(rng.normal(0, 0.05), -0.08, 0.08)))
    width, depth, muscle = rng.uniform(118, 136), rng.uniform(88, 104), rng.uniform(7, 15)
    room = min(196 / (1.1 * scale) - width, (152 / scale - depth) / 0.9) - muscle - 8  # for fat, with the warp to spare
    return dict(
        scale=scale,
        width=width,
        depth=depth,
        muscle=muscle,
        fat=float(min(np.clip(rng.gamma(3.0, 4.5), 5, 34), room)),
        apex=rng.uniform(126, 140),
        inflation=float(np.clip(rng.normal(0, 9), -12, 12)),
        heart=float(np.clip(rng.normal(1, 0.06), 0.85, 1.15)),
        emphysema=0.0 if rng.uniform() < 0.3 else float(min(rng.gamma(0.9, 12.0), 50.0)),
        upper_lobe=rng.uniform(-0.3, 1.0),  # emphysema of smokers prefers the top
    )


def chest_wall(
    canvas: Canvas, person: Body, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, texture: torch.Tensor
) -> torch.Tensor:
    """Paint skin, fat and muscle.

    Args:
        canvas: to paint on.
        person: of `draw_person`.
        x, y, z: the subject's coordinates (x, y, z) in mm.
        texture: a random field of unit variance.

    Returns:
        Signed distance to the inner chest wall in mm, negative in the cavity.
    """
    u = ((person["apex"] - z) / 150).clamp(0, 1)
    profile = (1 - (1 - u) ** 2.6).clamp(min=1e-3).sqrt()
    a, b = person["width"] * profile, person["depth"] * (0.25 + 0.75 * profile)
    wall = (((x / a) ** 2 + (y / b) ** 2).sqrt() - 1) * (a * b).sqrt()
    shoulders = 1 + 0.1 * torch.sigmoid((z - 60) / 12)

    def outline(mm: float, power: float = 2.5) -> torch.Tensor:
        p, q = (person["width"] + mm) * shoulders, person["depth"] + 0.9 * mm
        return (1 - ((x / p).abs() ** power + ((y + 8) / q).abs() ** power) ** (1 / power)) * min(
            person["width"] + mm, person["depth"] + mm
        )

    muscle = person["muscle"] + 8
    canvas.paint("soft", canvas.share(outline(muscle + person["fat"])))
    canvas.paint("fat", canvas.share(outline(muscle + person["fat"]) - 2))  # under 2 mm of skin
    canvas.paint("soft", canvas.share(outline(muscle)))
    between = canvas.share(wall - 15 - 2 * texture, -1.2, 1.2) * canvas.share(outline(muscle) - 2)
    canvas.paint("fat", 0.85 * between)  # the plane of fat between two layers of muscle
    canvas.paint("soft", canvas.share(-wall))
    canvas.paint("fat", canvas.share(-wall) * (0.5 - 0.5 * torch.tanh(1.5 * texture)))  # fat of the mediastinum
    return wall


def ball(
    x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, centre: Sequence[float], radii: Sequence[float]
) -> torch.Tensor:
    """Return the approximate signed distance to an ellipsoid in mm, positive inside."""
    r = [(c - m) / s for c, m, s in zip((x, y, z), centre, radii, strict=True)]
    return (1 - (r[0] ** 2 + r[1] ** 2 + r[2] ** 2).sqrt()) * min(radii)


def capsule(
    x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, start: Sequence[float], end: Sequence[float], radius: float
) -> torch.Tensor:
    """Return the signed distance to a straight tube with round ends in mm, positive inside."""
    p = torch.stack([c - s for c, s in zip((x, y, z), start, strict=True)])
    d = torch.tensor(end, dtype=torch.float32) - torch.tensor(start, dtype=torch.float32)
    t = (torch.tensordot(d, p, 1) / (d @ d)).clamp(0, 1)
    return radius - (p - t * d[:, None, None, None]).square().sum(0).sqrt()


def hilum(side: int) -> np.ndarray:
    """Return where vessels and bronchus enter a lung; side 1 is the right lung."""
    return np.array([side * 32.0, -8.0, 12.0 if side > 0 else 16.0])


def mediastinum(person: Body, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return the signed distance to heart, great vessels and oesophagus, positive inside."""
    h, cos, sin = person["heart"], 0.766, 0.643  # the heart's axis is turned by 40 degrees to the left
    u, v = cos * (x + 20) - sin * (y - 22), sin * (x + 20) + cos * (y - 22)
    heart = ball(u, v, z, (0, 0, -62 - 0.5 * person["inflation"]), (62 * h, 43 * h, 56 * h))
    behind = -person["depth"] + 49
    parts = [
        heart,
        capsule(x, y, z, (-24, behind, -300), (-24, behind, 50), 12.5),  # descending aorta
        capsule(x, y, z, (-24, behind, 50), (-14, -2, 64), 12.5),  # arch
        capsule(x, y, z, (-14, -2, 64), (8, 28, 45), 13.0),
        capsule(x, y, z, (8, 28, 45), (2, 22, -20), 14.5),  # ascending aorta
        capsule(x, y, z, (26, 20, -20), (24, 12, 70), 9.5),  # superior vena cava
        capsule(x, y, z, (-10, 24, -10), (-8, 4, 14), 13.0),  # pulmonary trunk and its two arteries
        *(capsule(x, y, z, (-8, 4, 14), hilum(side), 8.0) for side in (1, -1)),
        capsule(x, y, z, (-6, behind - 8, -300), (0, -34, 200), 8.0),  # oesophagus
        capsule(x, y, z, (-8, 6, 64), (-34, 0, 200), 7.0),  # arteries to head and arms
        capsule(x, y, z, (6, 8, 64), (30, 2, 200), 8.0),
    ]
    return torch.stack(parts).amax(0)


def dome(side: int, x: torch.Tensor, y: torch.Tensor, person: Body) -> torch.Tensor:
    """Return the height (mm) of the diaphragm's dome under a lung.

    The liver lifts the right one by 9 mm.
    """
    rise = 54 * (1 - ((x - side * 58) / 84) ** 2 - ((y - 8) / 92) ** 2)
    return rise - 112 - person["inflation"] + (9 if side > 0 else 0)


def abdomen(
    canvas: Canvas,
    wall: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    domes: list[torch.Tensor],
    person: Body,
    texture: torch.Tensor,
) -> None:
    """Paint liver, other organs and the stomach's gas below the diaphragm."""
    below = torch.where(x > 0, domes[0], domes[1]) - z
    region = canvas.share(-wall) * canvas.share(below)
    canvas.paint("organ", region)
    left = canvas.share(-x - 22 + 8 * texture)
    canvas.paint("fat", region * left * canvas.share(8 * texture - 9))  # between the organs of the left side
    gas = ball(x, y, z, (-66, 28, -116 - person["inflation"]), (26, 24, 16))
    canvas.paint("air", canvas.share(gas) * canvas.share(below - 5))


def lung(
    side: int,
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    wall: torch.Tensor,
    diaphragm: torch.Tensor,
    person: Body,
) -> torch.Tensor:
    """Return the signed distance to one lung: between chest wall, mediastinum and diaphragm."""
    back = torch.exp(-(((y + person["depth"] - 12) / 24) ** 2))
    medial = 17 + 10 * back + 3 * torch.sigmoid((z + 20) / 20) - 9 * torch.sigmoid((y - 35) / 12)
    return torch.minimum(torch.minimum(-wall - 2.5, side * x - medial), (z - diaphragm) * 0.8)


def bone(canvas: Canvas, outline: Callable[[float], torch.Tensor], shell: float = 1.6) -> None:
    """Paint one bone: a cortical shell around marrow.

    Args:
        canvas: to paint on.
        outline: gives the share of every voxel inside the bone's outline at an inset in mm.
        shell: thickness in mm.
    """
    canvas.paint("cortical", outline(0.0))
    canvas.paint("marrow", outline(shell))


def skeleton(
    canvas: Canvas, person: Body, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, wall: torch.Tensor
) -> None:
    """Paint ribs with their cartilage, sternum, collar bones, shoulder blades and spine."""
    share, depth = canvas.share, person["depth"]
    phase = torch.remainder(z + 0.42 * y + 0.10 * (x.abs() - 60) + 300, 27.0) - 13.5
    level = share(person["apex"] + 6 - z) * share(x.abs() - 14)
    front = torch.sigmoid((y - 0.72 * depth) / 3)  # where a rib turns into cartilage

    def rib(inset: float) -> torch.Tensor:
        return share(phase, -5.6 + inset, 5.6 - inset) * share(wall - 6.2, -4.2 + inset, 4.2 - inset) * level

    canvas.paint("cartilage", rib(0.0) * front)
    bone(canvas, lambda inset: rib(inset) * (1 - front), shell=1.3)
    bone(
        canvas,
        lambda i: share(x, -17 + i, 17 - i) * share(y - depth - 8, -6 + i, 6 - i) * share(z, -42.0 + i, 96.0 - i),
    )
    for side in (1, -1):
        start, end = (side * 22, depth - 6, 112), (side * 118, 0, 128)
        clavicle = capsule(x, y, z, start, end, 6.0)
        bone(canvas, lambda i, d=clavicle: share(d - i))  # type: ignore[misc]
    lateral = x.abs() - 92
    blade = share(lateral, -30, 30) * share(-y - 18) * share(z, 5.0, 112.0) * share(wall - 21, -2.6, 2.6)
    canvas.paint("cortical", 0.8 * blade)
    spine(canvas, x, y, z, depth)


def spine(canvas: Canvas, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, depth: float) -> None:
    """Paint vertebrae every 25 mm, their discs, arches and processes, and the canal."""
    share = canvas.share
    column = -depth + 15 - 6 * torch.cos(z / 70)  # the thoracic curve
    y = y - column
    height = (torch.remainder(z + 400, 25.0) - 12.5).abs()  # 0 in a vertebra's middle, 12.5 in a disc's
    round_ = 18 - ((0.9 * x) ** 2 + (1.15 * y) ** 2).sqrt()
    behind = (x**2 + (y + 22) ** 2).sqrt()
    bone(canvas, lambda i: share(round_ - i) * share(height, -np.inf, 10.5 - i))
    canvas.paint("cartilage", share(round_) * share(height, 10.5, np.inf))  # the disc
    canvas.paint("marrow", share(13 - behind) * share(height, -np.inf, 9.0))
    across = y + 26 + 0.35 * x.abs()
    canvas.paint("marrow", share(across, -4.5, 4.5) * share(x, -38, 38) * share(height, -np.inf, 5.0))
    canvas.paint("marrow", share(x, -4, 4) * share(y + 37, -10, 10) * share(height, -np.inf, 7.0))
    canvas.paint("soft", share(8 - behind))  # the spinal canal


def fill_lungs(
    canvas: Canvas,
    seed: int,
    person: Body,
    inside: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    texture: torch.Tensor,
) -> None:
    """Paint parenchyma, emphysema and fissures."""
    canvas.paint("lung", inside)
    if person["emphysema"]:
        rng = generator(seed, "emphysema")
        spots = canvas.field(rng, 22)[0] + 0.6 * canvas.field(rng, 11)[0] + person["upper_lobe"] * z / 80
        level = float(np.quantile(spots[inside > 0.5].numpy(), 1 - person["emphysema"] / 100))
        sick = inside * torch.sigmoid((spots - level) * 25)
        canvas.fractions[MATERIALS.index("lung")] -= sick
        canvas.fractions[MATERIALS.index("emphysema")] += sick
    oblique = (z + 1.1 * y - 8) / 1.49 + 3 * texture
    horizontal = z - 12 - 0.1 * x + 2 * texture
    canvas.paint("soft", inside * canvas.share(oblique, -0.5, 0.5))
    canvas.paint("soft", inside * canvas.share(horizontal, -0.5, 0.5) * (oblique > 0) * (x > 0))


def trees(canvas: Canvas, seed: int, person: Body, lungs: torch.Tensor, inside: torch.Tensor) -> None:
    """Paint the vessels of both lungs, windpipe and bronchi.

    Each tree is connected from its root to its tips.
    """
    rng, s = generator(seed, "tree"), person["scale"]
    vessels, bronchi = [], []
    for side in (1, -1):
        tips = lung_points(rng, canvas, lungs, side, 340)
        vessels += grow(rng, s * (hilum(side) + [0, 6, -2]), tips, lambda leaves: 0.85 * leaves**0.37)
        bronchi += grow(rng, s * hilum(side), tips[:14], lambda leaves: 1.1 * leaves**0.5)
    lumen, wall = draw_tubes(canvas, bronchi), draw_tubes(canvas, [(p, q, r + 1.3) for p, q, r in bronchi])
    canvas.paint("soft", draw_tubes(canvas, vessels) * inside)
    canvas.paint("soft", wall * inside)
    canvas.paint("air", lumen)
    x, y, z = canvas.xyz / s
    carina = (2, -14, 34)
    large = [capsule(x, y, z, (0, -4, 300), carina, 8.5)]
    large += [capsule(x, y, z, carina, hilum(side), 6.0) for side in (1, -1)]
    tube = torch.stack(large).amax(0)
    canvas.paint("soft", canvas.share(tube + 1.8))
    canvas.paint("air", canvas.share(tube))


def lung_points(rng: np.random.Generator, canvas: Canvas, lungs: torch.Tensor, side: int, count: int) -> np.ndarray:
    """Draw points spread over one lung, at least 4 mm under its surface.

    Which draws are deep enough depends on the grid a little, so one seed grows almost the same tree on every grid.

    Args:
        rng: of the draw.
        canvas: the grid.
        lungs: signed distance to the lungs (x, y, z) in mm.
        side: 1 is the right lung, -1 the left one.
        count: at most so many points.

    Returns:
        Positions (n, 3) in mm.
    """
    low, high = (np.array([a[0] for a in canvas.axes]), np.array([a[-1] for a in canvas.axes]))
    half = np.array(FIELD_OF_VIEW) / 2
    points = np.array(CENTRE) + rng.uniform(-1, 1, (20 * count, 3)) * half
    index = np.rint((points - low) / (high - low) * (np.array(lungs.shape) - 1)).clip(0, np.array(lungs.shape) - 1)
    index = index.astype(int)
    depth = lungs.numpy()[tuple(index.T)]
    return points[(depth > 4) & (side * points[:, 0] > 0)][:count]


def grow(rng: np.random.Generator, root: np.ndarray, tips: np.ndarray, radius: Callable[[int], float]) -> list[Tube]:
    """Connect tips to a root, nearest first, each to the node that makes a short way.

    Args:
        rng: of bends.
        root: position (3) in mm.
        tips: positions (n, 3) in mm.
        radius: from the number of tips behind a branch to mm; a power near 1/3, as Murray's law has it.
    """
    nodes, way, parent = np.zeros((2 * len(tips) + 1, 3)), np.zeros(2 * len(tips) + 1), [-1]
    nodes[0], n = root, 1
    for tip in tips[np.argsort(((tips - root) ** 2).sum(1))]:
        distance = np.sqrt(((nodes[:n] - tip) ** 2).sum(1))
        i = int(np.argmin(distance + 0.12 * way[:n]))
        middle = (nodes[i] + tip) / 2 + rng.normal(0, 0.08, 3) * distance[i]
        for point in (middle, tip):
            nodes[n], way[n] = point, way[i] + np.linalg.norm(point - nodes[i])
            parent.append(i)
            i, n = n, n + 1
    leaves = np.zeros(n)
    leaves[2::2] = 1  # every second node is a tip, the others lie half-way
    for i in range(n - 1, 0, -1):
        leaves[parent[i]] += leaves[i]
    return [(nodes[parent[i]], nodes[i], radius(leaves[i])) for i in range(1, n)]


def draw_tubes(canvas: Canvas, tubes: list[Tube]) -> torch.Tensor:
    """Return the share (x, y, z) of every voxel that tubes fill, thinner than a voxel or not.

    Each tube is a dense bundle of points that carry its volume, laid in a sunflower pattern over its cross-section and shared
    among the eight nearest voxels. So a thin tube becomes a faint, unbroken line of the right volume.
    """
    start, end, radius = (np.array(part, np.float64) for part in zip(*tubes, strict=True))
    h = min(canvas.spacing)
    length = np.linalg.norm(end - start, axis=1)
    along = np.maximum(2, np.ceil(length / (0.5 * h))).astype(int)
    around = np.maximum(1, np.ceil(8 * (radius / h) ** 2)).astype(int)
    tube = np.repeat(np.arange(len(tubes)), along * around)
    number = np.arange(len(tube)) - np.repeat(np.cumsum(along * around) - along * around, along * around)
    t = (number // around[tube] + 0.5) / along[tube]
    k = number % around[tube]
    r, angle = radius[tube] * np.sqrt((k + 0.5) / around[tube]), 2.399963 * k  # the golden angle
    axis = (end - start) / length[:, None]
    u = np.cross(axis, np.eye(3)[np.abs(axis).argmin(1)])
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(axis, u)
    points = start[tube] + t[:, None] * (end - start)[tube]
    points += r[:, None] * (np.cos(angle)[:, None] * u[tube] + np.sin(angle)[:, None] * v[tube])
    volume = (np.pi * radius**2 * length / (along * around))[tube] / np.prod(canvas.spacing)
    return deposit(points, volume, canvas)


def deposit(points: np.ndarray, volume: np.ndarray, canvas: Canvas) -> torch.Tensor:
    """Share point volumes among their eight nearest voxel centres.

    Args:
        points: positions (n, 3) in mm.
        volume: of each point, in voxels (n).
        canvas: the grid.

    Returns:
        Share of every voxel (x, y, z), at most 1.
    """
    shape = np.array(canvas.fractions.shape[1:])
    index = (points - [a[0] for a in canvas.axes]) / canvas.spacing
    base = np.floor(index).astype(int)
    total = np.zeros(int(shape.prod()))
    for corner in np.ndindex(2, 2, 2):
        weight = np.abs(1 - np.array(corner) - (index - base)).prod(1) * volume
        at = base + corner
        inside = ((at >= 0) & (at < shape)).all(1)
        total += np.bincount(np.ravel_multi_index(at[inside].T, shape), weight[inside], total.size)
    return torch.from_numpy(total.reshape(shape)).float().clamp(max=1)


def lung_function(seed: int, emphysema_percent: float) -> dict[str, float]:
    """Draw spirometry that falls with emphysema.

    THE COEFFICIENTS ARE INVENTED, for exercises only.

    fev1pp = 102 - 1.35 e + N(0, 11), percent of predicted, kept in 15 to 135; fev1_fvc = 0.79 - 0.0095 e + N(0, 0.045), kept in
    0.22 to 0.90; e is the percentage of emphysema.
    """
    rng = generator(seed, "lung function")
    fev1pp = np.clip(102 - 1.35 * emphysema_percent + rng.normal(0, 11), 15, 135)
    ratio = np.clip(0.79 - 0.0095 * emphysema_percent + rng.normal(0, 0.045), 0.22, 0.90)
    return dict(fev1pp=float(fev1pp), fev1_fvc=float(ratio))


def hounsfield(canvas: Canvas, person: Body, y: torch.Tensor, z: torch.Tensor, texture: torch.Tensor) -> torch.Tensor:
    """Return noise-free HU (x, y, z): the mixture of materials.

    Lung is denser below, as in the back of a lying person, and tissue is uneven.
    """
    hu = torch.tensordot(torch.tensor(list(HOUNSFIELD.values())), canvas.fractions, 1)
    part = dict(zip(MATERIALS, canvas.fractions, strict=True))
    hu += part["lung"] * (12 * texture - 0.25 * y - 0.06 * z - 1.2 * person["inflation"])
    return hu + 6 * (part["soft"] + part["organ"]) * texture
