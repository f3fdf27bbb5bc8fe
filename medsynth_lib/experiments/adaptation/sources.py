"""The models that an adaptation starts from or is judged by, trained on the source site."""

from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from medsynth_lib.experiments.adaptation.direction import Direction
from medsynth_lib.experiments.trained_models import Trained, train_or_load
from medsynth_lib.settings import Lesson04Settings, SliceVAESettings


@dataclass(frozen=True, eq=False)
class Sources:
    """Shipped, cached or newly trained models of a direction.

    Attributes:
        direction: the data.
        settings: of the lesson.
        seed: of the synthesiser's training. Slice-VAE and segmenter have seed 0 in every study.
        given: a generator in the place of the trained synthesiser.
    """

    direction: Direction
    settings: Lesson04Settings
    seed: int = 0
    given: nn.Module | None = None

    @cached_property
    def base(self) -> nn.Module:
        """The generator that every adaptation starts from."""
        return self.backbone(self.direction.source) if self.given is None else self.given

    def backbone(self, site: str, intensity: float = 0.0) -> nn.Module:
        """Train or load a site's generator; arguments as in `trained`."""
        return self.trained(site, intensity).networks["generator"]

    def trained(self, site: str, intensity: float = 0.0) -> Trained:
        """Train or load a site's pix2pix.

        Args:
            site: source or target.
            intensity: probability of the contrast and brightness augmentation.
        """
        settings = replace(self.settings.pix2pix, seed=self.seed, intensity=intensity)
        return train_or_load(f"pix2pix-{site}", settings, self._volumes(site, "train"), self._volumes(site, "tune"))

    def _volumes(self, site: str, split: str):
        """Volumes of a site; those of the source are kept."""
        return getattr(self.direction, split) if site == self.direction.source else self.direction.volumes(site, split)

    def encoder(self, settings: SliceVAESettings | None = None) -> tuple[nn.Module, SliceVAESettings]:
        """Train or load a slice-VAE of the source's T1.

        Args:
            settings: of the slice-VAE; None takes the lesson's `svae`.

        Returns:
            Its encoder and its settings.
        """
        settings = replace(settings or self.settings.svae, seed=0)
        name = f"svae{settings.dims}d-{self.direction.source}"
        trained = train_or_load(name, settings, self.direction.train, self.direction.tune)
        return trained.networks["vae"].encoder, settings

    @cached_property
    def segmenter(self) -> nn.Module:
        """The source's tumour segmenter, which judges synthetic T1."""
        train, tune = (self.direction.four_images(self.direction.source, split) for split in ("train", "tune"))
        settings = replace(self.settings.segmenter, seed=0)
        return train_or_load(f"segmenter-{self.direction.source}", settings, train, tune).networks["segmenter"]
