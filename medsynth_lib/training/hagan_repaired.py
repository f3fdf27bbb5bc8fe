"""HA-GAN that stays diverse: two remedies for the printed form or the joint one.

What they change, and why:
- `Augmented`: every volume that D^H and D^L see, real or generated, is first changed at random in the same way. A gradient
  passes through the change (Zhao et al. 2020, arXiv:2006.10738). So the discriminators cannot learn the real volumes by
  heart.
- `SeesBatch`: one more discriminator sees the standard deviation over the batch of X^L. It notices
  mode collapse. The paper's discussion names mini-batch discrimination as future work.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from medsynth_lib.models.hagan_batch import DiscriminatorBatch
from medsynth_lib.training.hagan import bce
from medsynth_lib.training.loop import Run

SHIFT = 1 / 10  # of the plane's side, at most
BRIGHTNESS, CONTRAST = 0.1, 0.2  # standard deviation of what is added; largest change of the factor
HOLE = 1 / 3  # of the plane's side; cut out with probability 1/2


class Augmented:
    """What changed views add to `HAGAN` or to `JointHAGAN`; name it before them in the bases."""

    def judge(self, x_r: Tensor, x_low: Tensor, r: int) -> tuple[Tensor, ...]:
        """Return the logits of changed volumes; in evaluation of the volumes themselves."""
        if self.networks["D^H"].training:
            pairs = [augment(*pair) for pair in zip(x_r, x_low, strict=True)]
            x_r, x_low = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return super().judge(x_r, x_low, r)


def augment(x_r: Tensor, x_low: Tensor) -> tuple[Tensor, Tensor]:
    """Change both views of a volume in the same way, drawn anew at each call.

    The volume moves within the plane, its contrast and brightness change, and half of the time a square of the plane
    becomes 0, the middle of the range. What leaves the plane on one side enters it on the other. The first axis, along
    which sub-volumes are cut, stays as it is.

    Args:
        x_r: a sub-volume (1, depth, S, S) in [-1, 1].
        x_low: its low-resolution volume (1, S/4, S/4, S/4).
    """
    side = x_low.shape[-1]
    largest, hole = max(1, round(SHIFT * side)), max(1, round(HOLE * side))
    move = torch.randint(-largest, largest + 1, (2,)).tolist()
    factor, added = 1 + CONTRAST * (2 * torch.rand(()).item() - 1), BRIGHTNESS * torch.randn(()).item()
    corner = torch.randint(side - hole + 1, (2,)).tolist() if torch.rand(()) < 0.5 else None

    def change(x: Tensor, scale: int) -> Tensor:
        x = torch.roll(x, [scale * voxels for voxels in move], (-2, -1))
        x = (x + 1) * factor - 1 + added  # the factor leaves the background at -1
        if corner:
            y, z = (slice(scale * start, scale * (start + hole)) for start in corner)
            kept = torch.ones_like(x)
            kept[..., y, z] = 0
            x = x * kept
        return x

    return change(x_r, 4), change(x_low, 1)


class SeesBatch:
    """What D^B adds to `HAGAN` or to `JointHAGAN`; name it before them and before `Augmented` in the bases."""

    def make_networks(self, **kind: int) -> dict[str, nn.Module]:
        """Make D^B besides the other networks."""
        return super().make_networks(**kind) | {"D^B": DiscriminatorBatch(self.size)}

    def rate(self, name: str) -> float:
        """Return a network's learning rate as a multiple of the generator's."""
        return self.settings.discriminator_rate if name == "D^B" else super().rate(name)

    def update(self, names: tuple[str, ...], run: Run, *terms: Callable[[], Tensor]) -> list[Tensor]:
        """Take one step of these networks; D^B learns together with D^L."""
        return super().update((*names, "D^B") if "D^L" in names else names, run, *terms)

    def judge(self, x_r: Tensor, x_low: Tensor, r: int) -> tuple[Tensor, ...]:
        """Return the logits of D^H and D^L, and that of D^B, (1, 1)."""
        return *super().judge(x_r, x_low, r), self.networks["D^B"](x_low)

    def adversarial(self, logits: tuple[Tensor, ...], real: bool) -> Tensor:
        """Return one kind of term of (4) and (5), and the same of D^B."""
        *volumes, batch = logits
        return super().adversarial(tuple(volumes), real) + bce(batch, real)
