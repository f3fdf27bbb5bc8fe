"""HA-GAN in any of its forms, from its settings."""

import torch

from medsynth_lib.settings import (
    ConditionalHAGANSettings,
    ConditionalJointHAGANSettings,
    DeterministicStartSettings,
    HAGANSettings,
    InformedHAGANSettings,
    JointHAGANSettings,
    PublicHAGANSettings,
    Remedies,
    RepairedHAGANSettings,
    RepairedJointHAGANSettings,
    WithoutEncoderSettings,
    WithoutLowBranchSettings,
)
from medsynth_lib.training.hagan import HAGAN
from medsynth_lib.training.hagan_ablations import DeterministicStart, PublicHAGAN, WithoutEncoder, WithoutLowBranch
from medsynth_lib.training.hagan_classes import WithClasses
from medsynth_lib.training.hagan_information import InformedHAGAN
from medsynth_lib.training.hagan_joint import JointHAGAN
from medsynth_lib.training.hagan_lean import Lean
from medsynth_lib.training.hagan_mean import RunningMean
from medsynth_lib.training.hagan_repaired import Augmented, SeesBatch

FORMS = {  # settings -> classes, from the outermost to the one that is built on
    HAGANSettings: (HAGAN,),
    JointHAGANSettings: (JointHAGAN,),
    ConditionalHAGANSettings: (WithClasses, HAGAN),
    ConditionalJointHAGANSettings: (WithClasses, JointHAGAN),
    InformedHAGANSettings: (InformedHAGAN,),
    WithoutLowBranchSettings: (WithoutLowBranch,),
    WithoutEncoderSettings: (WithoutEncoder,),
    DeterministicStartSettings: (DeterministicStart,),
    PublicHAGANSettings: (PublicHAGAN,),
    RepairedHAGANSettings: (HAGAN,),
    RepairedJointHAGANSettings: (JointHAGAN,),
}


def build(settings: HAGANSettings, *given: object) -> HAGAN:
    """Build the HA-GAN that settings describe.

    Their class says which form; their fields say whether it is lean and keeps a running mean.

    Args:
        given: what the form needs besides: basis and start of an `InformedHAGAN`.
    """
    *outer, core = FORMS[type(settings)]
    remedies: list[type] = []
    if isinstance(settings, Remedies):
        wanted = {SeesBatch: settings.batch_discriminator, Augmented: settings.augmented}
        remedies = [remedy for remedy, chosen in wanted.items() if chosen]
    # means are copied before layers become lean
    inner = [Lean] * settings.lean + [RunningMean] * (settings.average > 0)
    bases = (*outer, *remedies, *inner, core)
    model = type("".join(base.__name__ for base in bases), bases, {})(settings, *given)
    if isinstance(model, InformedHAGAN):
        model.load_means()
    if settings.channels_last:
        for network in model.networks.values():
            network.to(memory_format=torch.channels_last_3d)
    return model
