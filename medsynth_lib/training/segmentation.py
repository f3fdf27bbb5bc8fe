"""The segmenter that judges synthetic T1: tumour regions from T1ce, T2, FLAIR and T1 (section 3, 'Evaluation protocol').

The paper takes a pre-trained nnU-Net; here a small SegResNet (Myronenko 2018, MONAI's) is trained on the source site.
"""

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet

from medsynth_lib.data.preprocess import augment
from medsynth_lib.training.loop import linear_decay

VERSION = 1  # raise when the mathematics below changes: artefacts of another version are not reused
RECIPE_KEYS = ("width", "learning_rate", "constant_until", "decay_until", "final_learning_rate", "spatial", "intensity",
               "steps", "batch_size", "validate_every")  # fmt: skip
INPUTS = ("t1ce", "t2", "flair", "t1")
REGIONS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}  # BraTS: whole tumour, tumour core, enhancing tumour


def regions(seg):
    """Labels (b, 1, x, y, z) to the three overlapping regions (b, 3, x, y, z), float32."""
    return torch.cat([torch.isin(seg, seg.new_tensor(labels)) for labels in REGIONS.values()], 1).float()


class Segmenter:
    """SegResNet with ``width`` filters, four inputs and three sigmoid outputs (WT, TC, ET); Dice and cross-entropy loss."""

    reads = ("x", "mask", "seg")

    def __init__(self, recipe):
        self.recipe = recipe
        network = SegResNet(init_filters=recipe["width"], in_channels=len(INPUTS), out_channels=len(REGIONS))
        self.networks = {"segmenter": network}
        self.optimisers = {"segmenter": torch.optim.Adam(network.parameters(), recipe["learning_rate"])}
        self.loss = DiceCELoss(sigmoid=True)

    def learning_rate(self, step, steps):
        return linear_decay(self.recipe, step, steps)

    def prepare(self, batch, generator):
        samples = [
            augment({k: batch[k][i] for k in self.reads}, generator, self.recipe["spatial"], self.recipe["intensity"])
            for i in range(len(batch["x"]))
        ]
        return {k: torch.stack([s[k] for s in samples]) for k in self.reads}

    def step(self, batch):
        loss = self.loss(self.networks["segmenter"](batch["x"]), regions(batch["seg"]))
        self.optimisers["segmenter"].zero_grad(set_to_none=True)
        self.backward(loss)
        self.optimisers["segmenter"].step()
        return {"loss": loss.detach()}

    def backward(self, loss):
        loss.backward()

    def validate(self, batch):
        return {"loss": self.loss(self.networks["segmenter"](batch["x"]), regions(batch["seg"]))}
