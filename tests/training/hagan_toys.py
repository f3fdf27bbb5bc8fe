"""Small HA-GANs and volumes for the tests of all its forms."""

import torch

from medsynth_lib.settings import HAGANSettings
from medsynth_lib.training.hagan_build import build

SMALL = dict(size=32, latent=16, c=4, average=0.9, learning_rate=1e-3)
R = 8  # where the sub-volume of these tests starts


def algorithm(kind=HAGANSettings, **changes):
    torch.manual_seed(0)
    return build(kind(**SMALL | changes))


def volumes(b=2, size=32, dtype=torch.float32):
    return (torch.rand(b, 1, size, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(dtype)


def real_of(model, x, r=R, label=None):
    """What the losses of a model take: volumes, and what the discriminators see of them."""
    return model.cut({"x": x} | ({} if label is None else {"label": label}), r)


def parameters(model):
    return {n: {k: v.detach().clone() for k, v in net.named_parameters()} for n, net in model.networks.items()}


def changed(before, after):
    return {name for name in before if any(not torch.equal(before[name][k], after[name][k]) for k in before[name])}


def same_state(one, other):
    """Whether two algorithms' networks are the same to the bit, running means and buffers included."""
    return all(
        torch.equal(value, other.networks[name].state_dict()[key])
        for name, network in one.networks.items()
        for key, value in network.state_dict().items()
    )
