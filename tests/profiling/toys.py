"""Small trainings that the tests of profiling account."""

import torch
from monai.networks.nets import SegResNet, UNet

from medsynth_lib.profiling.ledger import Training
from medsynth_lib.profiling.networks import baseline, hagan
from medsynth_lib.profiling.phases import phase

FLOAT = 4  # bytes


def segresnet():
    return SegResNet(spatial_dims=3, in_channels=1, out_channels=1, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))


def unet():
    return UNet(3, 1, 1, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)


def small_hagan(size=32, sub_volume=1 / 8, lean=False):
    return hagan(size, sub_volume, latent=16, c=4, lean=lean)


def small_lean(size=32):
    return small_hagan(size, lean=True)


def wgan(size=16, fused=False):
    return baseline("WGAN", size, latent=8, width=4, widest=8, fused=fused)


def trained(network, x, optimiser=torch.optim.Adam):
    """Training of the sum of a network's output, which needs nothing saved for its gradient."""
    adam = optimiser([p for p in network.parameters() if p.requires_grad]) if optimiser else None

    def step():
        network.zero_grad()
        with phase("forward"):
            loss = network(x).sum()
        with phase("backward"):
            loss.backward()
        del loss
        with phase("optimiser"):
            if adam:
                adam.step()

    return Training(step, {"net": network}, {"net": adam} if adam else {}, {"x": x})
