"""The segmenters that judge synthetic images, both a small SegResNet (Myronenko 2018, MONAI's).

Tumour regions from T1ce, T2, FLAIR and T1 (adaptation paper, section 3, 'Evaluation protocol', which takes a pre-trained
nnU-Net), trained on the source site. Twelve brain structures from T1 (HA-GAN paper, Fig. 6, which takes FreeSurfer).
"""

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.networks.nets import SegResNet

from medsynth_lib.data.preparation.pairs import augment
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.settings import SegmenterSettings, StructureSettings
from medsynth_lib.training.loop import Algorithm, Batch, Losses, Run

VERSION = 2  # raise when the mathematics below changes: artefacts of another version are not reused
STRUCTURES_VERSION = 2
INPUTS = ("t1ce", "t2", "flair", "t1")
REGIONS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}  # BraTS: whole tumour, tumour core, enhancing tumour


def regions(seg: torch.Tensor) -> torch.Tensor:
    """Turn labels (b, 1, x, y, z) into three overlapping regions (b, 3, x, y, z), float32."""
    return torch.cat([torch.isin(seg, seg.new_tensor(labels)) for labels in REGIONS.values()], 1).float()


class Segmenter(Algorithm):
    """SegResNet with ``width`` filters, four inputs and three sigmoid outputs (WT, TC, ET); halved twice."""

    settings: SegmenterSettings
    reads: tuple[str, ...] = ("x", "mask", "seg")

    def __init__(self, settings: SegmenterSettings) -> None:
        self.settings = settings
        network = SegResNet(
            init_filters=settings.width,
            in_channels=len(INPUTS),
            out_channels=len(REGIONS),
            blocks_down=(1, 1, 1),
            blocks_up=(1, 1),
        )
        self.networks = {"segmenter": network}
        self.optimisers = {"segmenter": torch.optim.Adam(network.parameters(), settings.learning_rate)}
        self.dice = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        samples = [
            augment({k: batch[k][i] for k in self.reads}, generator, self.settings.spatial, self.settings.intensity)
            for i in range(len(batch["x"]))
        ]
        return {k: torch.stack([s[k] for s in samples]) for k in self.reads}

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return Dice plus binary cross-entropy.

        The regions overlap, so each is a question of its own and not one of three classes.
        """
        logits, truth = self.networks["segmenter"](batch["x"]), regions(batch["seg"])
        return self.dice(logits, truth) + F.binary_cross_entropy_with_logits(logits, truth)

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        loss = self.loss(batch)
        self.optimisers["segmenter"].zero_grad(set_to_none=True)
        run.backward(loss)
        self.optimisers["segmenter"].step()
        return {"loss": loss.detach()}

    def validate(self, batch: Batch) -> Losses:
        return {"loss": self.loss(batch)}


class PositionedSegResNet(SegResNet):
    """SegResNet (b, 1, N, N, N) -> (b, classes, N, N, N) that also sees where a voxel lies in the cube, -1 to 1 along each axis.

    Thalamus and caudate are of one brightness; what tells them apart is further away than the network looks.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(
            init_filters=width, in_channels=4, out_channels=classes, blocks_down=(1, 1, 1), blocks_up=(1, 1)
        )

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the coarsest features, and those of all resolutions, from fine to coarse."""
        axes = [torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:]]
        where = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1, -1)
        return super().encode(torch.cat([x, where], 1))


class StructureSegmenter(Segmenter):
    """`PositionedSegResNet` from T1 cubes (b, 1, N, N, N) in [-1, 1] to logits of background and twelve structures."""

    settings: StructureSettings  # type: ignore[assignment]
    reads = ("x", "labels")

    def __init__(self, settings: StructureSettings) -> None:
        self.settings = settings
        network = PositionedSegResNet(settings.width, len(STRUCTURES))
        self.networks = {"segmenter": network}
        self.optimisers = {"segmenter": torch.optim.Adam(network.parameters(), settings.learning_rate)}
        self.dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Left and right are one structure: half of the volumes are mirrored."""
        flip = torch.rand(len(batch["x"]), generator=generator) < 0.5
        return {
            k: torch.stack([v.flip(1) if f else v for v, f in zip(batch[k], flip, strict=True)]) for k in self.reads
        }

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return Dice plus cross-entropy.

        A class weighs by the inverse root of its size, since most structures are small.
        """
        logits, labels = self.networks["segmenter"](batch["x"]), batch["labels"].long()
        share = torch.bincount(labels.flatten(), minlength=len(STRUCTURES)) / labels.numel()
        weight = share.clamp(min=1e-4).rsqrt()
        return self.dice(logits, labels) + F.cross_entropy(logits, labels[:, 0], weight)
