"""HA-GAN whose generator learns to recover: the form of the shipped models.

What it changes, and why:
- G^A, G^L and G^H learn equation (7) together with E^G, beside their own loss. The paper's discussion says that (7)
  prevents mode collapse. As printed it cannot, because only E^G learns from it.
- E^G is the encoder of a VAE: codes are drawn from q(z | X), whose KL to N(0, I) weighs `kl_weight`. The KL pulls
  the codes of real volumes towards N(0, I), the distribution of sampled codes.
- Recovery comes first (`recovery_first`): the adversarial training phase begins when the generator can already draw.
  Before it, the encoders stop learning for good, and codes are counted for a while. When the adversarial training phase
  begins, codes are standardised: mean 0, covariance I. From there on G alone learns (7).
- Adam's beta_1 is 0.5 (`beta_1`), and not 0.
- E^G learns more slowly (`encoder_rate`). Its last layer sums over 512 c inputs, none of them negative. Adam
  moves every weight about equally far, so all codes would shift in the same direction.
"""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_lib.models.hagan_joint import networks
from medsynth_lib.settings import JointHAGANSettings
from medsynth_lib.training.hagan import DISCRIMINATORS, GENERATOR, HAGAN, Real
from medsynth_lib.training.loop import Batch, Losses, Run
from medsynth_lib.training.svae import gaussian_kl

COUNTING = 0.05  # share of the steps in which codes are counted


class JointHAGAN(HAGAN):
    """HA-GAN whose G and E^G learn equation (7) together, with phases: recovery, counting, adversarial training."""

    settings: JointHAGANSettings
    phase = "adversarial"  # or "recovery", "counting"

    def make_networks(self, **kind: int) -> dict[str, nn.Module]:
        """Make the seven networks, E^G variational and G^A for standardised codes."""
        s = self.settings
        return networks(s.size, s.latent, s.c, s.fraction, **kind)

    def rate(self, name: str) -> float:
        """Return a network's learning rate as a multiple of the generator's."""
        return self.settings.encoder_rate if name == "E^G" else super().rate(name)

    def begin_step(self, step: int, steps: int) -> None:
        """Enter the phase of this step; standardise codes when adversarial training begins."""
        counting = ceil(self.settings.recovery_first * steps)  # the step at which it begins
        adversarial = counting and counting + ceil(COUNTING * steps)
        self.phase = "recovery" if step < counting else "counting" if step < adversarial else "adversarial"
        if counting and step == adversarial and self.networks["E^G"].standard.people:  # not after a resume: it is done
            self.settle()

    def settle(self) -> None:
        """Make codes standard for encoder and generator alike.

        The volume that the generator draws of a real volume's code does not change.
        """
        standard = self.networks["E^G"].standard
        standard.settle()
        for name in ("G^A", "mean G^A"):
            if name in self.networks:
                self.networks[name].standard.load_state_dict(standard.state_dict())

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Run one iteration. Update: 1. D^H and D^L, 2. G^A, G^L, G^H and E^G, 3. E^H.

        Without the adversarial training phase there is no update of D and no loss of G. Where recovery comes first, the
        encoders learn in that phase alone.
        """
        if self.settings.recovery_first and run.processes > 1:
            raise ValueError("recovery_first needs one process: each would count the codes of its own volumes")
        real, losses, terms = self.cut(batch, self.draw_start()), {}, {}
        if self.phase == "adversarial":
            losses["d"] = sum(
                self.update(DISCRIMINATORS, run, lambda: self.real_loss(real), lambda: self.fake_loss(real))
            )
            terms["g"] = lambda: self.generator_loss(real)
        terms["e_ground"] = lambda: self.ground_loss(real)
        encoders_learn = self.phase == "recovery" or not self.settings.recovery_first
        together = (*GENERATOR, "E^G") if encoders_learn else GENERATOR
        losses |= zip(terms, self.update(together, run, *terms.values()), strict=True)
        if encoders_learn:
            (losses["e_high"],) = self.update(("E^H",), run, lambda: self.high_loss(real))
        return losses

    def ground_loss(self, real: Real) -> Tensor:
        """Return lambda_2 times (7) for drawn codes, plus the weighted KL of the codes to N(0, I)."""
        z, kl = self.codes(self.features(real.x))
        x_r, x_low = self.generate(z, real)
        recovery = F.l1_loss(x_low, real.x_low) + F.l1_loss(x_r, real.x_r)
        return self.settings.lam * recovery + self.settings.kl_weight * kl

    def codes(self, a_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Draw codes from q(z | X); return them, standardised, and their KL to N(0, I) in nats."""
        encoder = self.networks["E^G"]
        mean, log_variance = encoder(a_hat, posterior=True)
        drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        if self.phase == "counting":
            encoder.standard.count(drawn.detach())
        return encoder.standard(drawn), gaussian_kl(mean, log_variance).sum(1).mean()

    def recovery(self, real: Real) -> Losses:
        """Return the L1 error of whole volumes from their mean codes, and the KL in nats."""
        mean, log_variance = self.networks["E^G"](self.features(real.x), posterior=True)
        a, _ = self.common(self.networks["E^G"].standard(mean), real)
        kl = gaussian_kl(mean, log_variance).sum(1).mean()
        return {"recovery_l1": F.l1_loss(self.networks["G^H"](a), real.x), "kl": kl}
