"""Every row of the comparison: Table 2, its controls and its rivals, by name.

A method is a function of a `Study` that returns a `Predictor`. It may read what its name says and nothing else: the target's
T1 in the rows "supervised", "oracle" and "trained on target" alone, and a test subject never. To add a row, write a function
and put ``@row("its name")`` above it. `METHODS` keeps the order of this file.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from medsynth_lib.data.preparation import appearance
from medsynth_lib.experiments.adaptation.recipes import (
    Latent,
    course,
    paper_code,
    paper_text,
    slice_latent,
    supervised,
)
from medsynth_lib.experiments.adaptation.study import Predictor, Study, after_curve, generator_predictor
from medsynth_lib.experiments.computer import default_fabric
from medsynth_lib.models.svae import Encoder
from medsynth_lib.training.adaptation import posterior

VERSION = 2  # raise when a row below changes its mathematics: cells of another version are not reused
RHO = 0.3  # of the rows with a latent loss, unless their name says another
PAIRS = (10, 40, 100)  # target pairs of the supervised rows, as in Table 2
VOLUMES = (10, 40, 70, 100)  # target volumes of Fig. 4b; the last is the whole adaptation set

Method = Callable[[Study], Predictor]
M = TypeVar("M", bound=Method)
METHODS: dict[str, Method] = {}


def row(name: str) -> Callable[[M], M]:
    """Register a function as the method of a row."""

    def register(method: M) -> M:
        METHODS[name] = method
        return method

    return register


# -- the source model, and more training of it --------------------------------------------------------------------------------


@row("no adaptation")
def no_adaptation(study: Study) -> Predictor:
    """Take the source model as it is."""
    return generator_predictor(study.sources.base)


@row("no adaptation + augmentation")
def augmented_source(study: Study) -> Predictor:
    """Take a source model that was trained with contrast and brightness augmentation."""
    return generator_predictor(study.sources.backbone(study.direction.source, intensity=0.5))


@row("continued training")
def continued_training(study: Study) -> Predictor:
    """Train on source pairs for as long as an adaptation: the control of all adaptations."""
    return course(study)


@row("continued training at the paper's rate")
def continued_training_at_the_papers_rate(study: Study) -> Predictor:
    """Train on source pairs at the learning rate of the public code."""
    return course(study, learning_rate=1e-6, final_learning_rate=1e-6)


@row("continued training at the paper's rate, two updates")
def two_updates_without_latent_loss(study: Study) -> Predictor:
    """Take the paper's two updates without a latent loss: the control of "s-VAE, paper profile"."""
    return paper_text(study, None)


@row("public code without its latent loss")
def public_code_without_latent_loss(study: Study) -> Predictor:
    """Take the public code's two updates without a latent loss: the control of its row."""
    return paper_code(study, None)


# -- the paper's idea: a latent loss -------------------------------------------------------------------------------------------


@row("3D VAE, KL")
def volume_vae(study: Study) -> Predictor:
    """Use the 3D VAE's code of the whole volume."""
    return course(study, slice_latent(study, study.settings.vae3d), rho=RHO)


@row("s-VAE, paper profile")
def svae_paper_text(study: Study) -> Predictor:
    """Adapt as the paper's text says, at the learning rate of its public code."""
    return paper_text(study, slice_latent(study))


@row("s-VAE, paper profile at this lesson's rate")
def svae_paper_text_at_this_rate(study: Study) -> Predictor:
    """Adapt as the paper's text says, at the learning rate of the course's recipe."""
    rates = ("learning_rate", "constant_until", "decay_until", "final_learning_rate")
    return paper_text(study, slice_latent(study), **{name: getattr(study.settings.adaptation, name) for name in rates})


@row("s-VAE, public code")
def svae_paper_code(study: Study) -> Predictor:
    """Adapt as the public code does."""
    return paper_code(study, slice_latent(study))


@row("s-VAE, KL(P||Q)")
def svae_kl(study: Study, rho: float = RHO) -> Predictor:
    """Adapt by the course's recipe with the divergence of equation 2."""
    return course(study, slice_latent(study), rho=rho)


METHODS["s-VAE, KL(P||Q), rho 0.1"] = partial(svae_kl, rho=0.1)
METHODS["s-VAE, KL(P||Q), rho 1"] = partial(svae_kl, rho=1.0)


@row("s-VAE, KL(Q||P)")
def svae_reverse_kl(study: Study) -> Predictor:
    """Swap the two sides of the divergence."""
    return course(study, slice_latent(study), rho=RHO, divergence="reverse_kl")


@row("s-VAE, symmetric KL")
def svae_symmetric_kl(study: Study) -> Predictor:
    """Take the mean of both directions of KL."""
    return course(study, slice_latent(study), rho=RHO, divergence="symmetric_kl")


@row("s-VAE, Wasserstein")
def svae_wasserstein(study: Study) -> Predictor:
    """Take the squared 2-Wasserstein distance."""
    return course(study, slice_latent(study), rho=RHO, divergence="wasserstein2")


@row("s-VAE, per-slice norm")
def svae_slice_norm(study: Study) -> Predictor:
    """Use a slice-VAE that normalises every slice by itself."""
    return course(study, slice_latent(study, study.settings.svae_slice), rho=RHO)


@row("s-VAE, random weights")
def random_encoder(study: Study) -> Predictor:
    """Use an encoder that was never trained: does it matter what the encoder knows?"""
    trained = slice_latent(study)
    svae, real = trained.settings, trained.real
    torch.manual_seed(study.seed)
    encoder = Encoder(svae.size, svae.dims, svae.norm, svae.width)
    with torch.no_grad():  # running statistics of real slices, or evaluation mode would see unnormalised layers
        for y in real[:16]:
            posterior(encoder, y[None], svae)
    return course(study, Latent(encoder.to(default_fabric().device), svae, real), rho=RHO)


# -- rivals that change how images look ----------------------------------------------------------------------------------------


@row("inputs matched")
def matched_inputs(study: Study) -> Predictor:
    """Give target inputs the source's pooled histogram."""
    wanted, own = study.style.input_quantiles
    return no_adaptation(study).of(lambda s: s | {"x": appearance.apply_curve(s["x"], s["mask"], own, wanted)})


@row("inputs Nyul")
def nyul_inputs(study: Study) -> Predictor:
    """Give every target input the source's mean landmarks (Nyul, Udupa, Zhang 2000)."""
    found = [appearance.quantiles([s["x"]], [s["mask"]], appearance.NYUL_LEVELS) for s in study.direction.train]
    wanted = np.mean(found, 0)
    return no_adaptation(study).of(lambda s: s | {"x": appearance.match_volume(s["x"], s["mask"], wanted)})


@row("outputs matched to source")
def matched_outputs(study: Study) -> Predictor:
    """Give every synthetic T1 the pooled landmarks of the source's T1."""
    masks = [s["mask"] for s in study.direction.train]
    wanted = appearance.quantiles(study.direction.source_t1, masks, appearance.NYUL_LEVELS)
    return no_adaptation(study).then(lambda t1, s: appearance.match_volume(t1, s["mask"], wanted))


@row("Fourier domain adaptation")
def fourier(study: Study) -> Predictor:
    """Train on source inputs with a target subject's low frequencies (Yang & Soatto 2020)."""
    train, adapt = study.direction.train, study.direction.adapt
    source = [
        s | {"x": appearance.fourier_swap(s["x"], adapt[i % len(adapt)]["x"], s["mask"])} for i, s in enumerate(train)
    ]
    return course(study, source=source)


@row("gamma + bias augmentation")
def gamma_and_bias(study: Study) -> Predictor:
    """Train on source inputs with random gamma and bias fields, four variants of each subject."""
    rng = np.random.default_rng(study.seed)
    train = study.direction.train
    source = [s | {"x": appearance.gamma_and_bias(s["x"], s["mask"], rng)} for _ in range(4) for s in train]
    return course(study, source=source)


@row("target-style inputs")
def target_style(study: Study) -> Predictor:
    """Train on source inputs with the target's slice thickness, noise and histogram."""
    return course(study, source=study.style.train)


# -- the signal equations ------------------------------------------------------------------------------------------------------


@row("physics on the output")
def physics_output(study: Study, fit: bool = True) -> Predictor:
    """Put the source model's output through the curve between both T1 looks, untrained."""
    return after_curve(study, no_adaptation(study), study.physics.curve(fit=fit))


METHODS["physics on the output, true relaxation"] = partial(physics_output, fit=False)


@row("physics T1")
def physics_t1(study: Study) -> Predictor:
    """Train on source pairs whose T1 has the target's look."""
    return course(study, source=study.physics.mapped_samples(study.physics.curve(), list(study.direction.train)))


@row("physics T1 + target style")
def physics(study: Study, fit: bool = True) -> Predictor:
    """Train on source T1 in the target's look, on inputs in the target's style.

    Args:
        study: data and models.
        fit: False uses the table of relaxation times as it stands. In simulated data that table is the truth: a bound.
    """
    return course(study, source=study.physics.mapped_samples(study.physics.curve(fit=fit), study.style.train))


METHODS["physics T1 + target style, true relaxation"] = partial(physics, fit=False)


@row("physics T1 + target style + s-VAE")
def physics_and_svae(study: Study) -> Predictor:
    """Add a latent loss whose prior is made of T1 in the target's look."""
    samples = study.physics.mapped_samples(study.physics.curve(), study.style.train)
    latent = Latent(*study.sources.encoder(), torch.stack([s["y"] for s in samples]))
    return course(study, latent, source=samples, rho=0.1, divergence="wasserstein2")


# -- bounds: rows that read the target's T1 ------------------------------------------------------------------------------------


def supervised_on(study: Study, n: int) -> Predictor:
    """Fine-tune on n target pairs: what adaptation without the target's T1 tries to reach."""
    pairs = study.direction.adapt_pairs
    return supervised(study, [pairs[i] for i in range(min(n, len(pairs)))])


METHODS |= {f"supervised, n = {n}": partial(supervised_on, n=n) for n in PAIRS}


@row("oracle: target inputs, source T1")
def oracle(study: Study) -> Predictor:
    """Fine-tune on ten subjects' target inputs beside their source T1, which do not exist."""
    inputs, truth = study.direction.adapt_pairs, study.direction.volumes(study.direction.source, "adapt")
    return supervised(study, [inputs[i] | {"y": truth[i]["y"]} for i in range(min(10, len(inputs)))])


@row("trained on target")
def trained_on_target(study: Study) -> Predictor:
    """Take a model that was trained on the target's training pairs."""
    return generator_predictor(study.sources.backbone(study.direction.target))


# -- Fig. 4b: fewer target volumes, with steps fixed or in proportion to them ----------------------------------------------------


def svae_on(study: Study, n: int, share: float = 1.0) -> Predictor:
    """Adapt like "s-VAE, KL(P||Q)" on the first n target volumes, for a share of its steps."""
    return course(study, slice_latent(study), rho=RHO, limit=n, share=share)


def fewer_steps(study: Study, share: float) -> Predictor:
    """Train on source pairs for a share of the steps: the control of equally short rows."""
    return course(study, share=share)


FIG_4B = {f"s-VAE, {n} volumes": partial(svae_on, n=n) for n in VOLUMES[:-1]}
FIG_4B |= {f"s-VAE, {n} volumes, steps in proportion": partial(svae_on, n=n, share=n / 100) for n in VOLUMES[:-1]}
FIG_4B |= {f"continued training, {n} % of the steps": partial(fewer_steps, share=n / 100) for n in VOLUMES[:-1]}
METHODS |= FIG_4B


A_TO_B_ALONE = {*FIG_4B, "s-VAE, public code", "public code without its latent loss"}


def planned(source: str, target: str) -> list[str]:
    """List the rows of a direction, in order; `A_TO_B_ALONE` from SIMA to SIMB alone."""
    return [name for name in METHODS if name not in A_TO_B_ALONE or (source, target) == ("SIMA", "SIMB")]
