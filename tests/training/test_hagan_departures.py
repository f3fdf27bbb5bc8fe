"""HA-GAN with classes, without one of its parts, and with the public code's losses."""

import pytest
import torch
import torch.nn.functional as F
from hagan_toys import R, algorithm, real_of, volumes

from medsynth_lib.evaluation.hagan_inference import sample
from medsynth_lib.settings import (
    ConditionalHAGANSettings,
    ConditionalJointHAGANSettings,
    DeterministicStartSettings,
    HAGANSettings,
    JointHAGANSettings,
    PublicHAGANSettings,
    WithoutEncoderSettings,
    WithoutLowBranchSettings,
)
from medsynth_lib.training.hagan import select_low
from medsynth_lib.training.hagan_build import FORMS

FORMS_THAT_NEED_NOTHING = [kind for kind in FORMS if kind.algorithm != "hagan_informed"]


@pytest.mark.parametrize("kind", FORMS_THAT_NEED_NOTHING, ids=lambda kind: kind.algorithm)
@pytest.mark.parametrize("lean", [False, True])
def test_every_form_trains_on_a_batch_of_one(kind, lean):
    model = algorithm(kind, lean=lean)
    batch = {"x": volumes(1), "label": torch.zeros(1, dtype=torch.long)}
    losses = model.step({key: batch[key] for key in model.reads})
    assert all(torch.isfinite(v) and not v.requires_grad for v in losses.values())
    assert ("G^L" in model.networks) == ("D^L" in model.networks) == (kind is not WithoutLowBranchSettings)
    assert ("E^G" in model.networks) == ("e_ground" in losses) == (kind is not WithoutEncoderSettings)
    measured = {"d_real"} | (set() if kind is WithoutEncoderSettings else {"recovery_l1"})
    assert set(model.validate(batch)) == measured | ({"kl"} if issubclass(kind, JointHAGANSettings) else set())


def test_without_the_low_branch_equations_4_and_7_have_one_term():
    model, x = algorithm(WithoutLowBranchSettings), volumes()
    nets, real = model.networks, real_of(model, x)
    logits = torch.tensor([[0.3], [-1.2]])
    assert torch.isclose(model.adversarial((logits,), True), -logits.sigmoid().log().mean())
    a = nets["G^A"](nets["E^G"](torch.cat([nets["E^H"](part) for part in x.split(4, 2)], 2)))
    assert torch.isclose(model.ground_loss(real), 5 * (nets["G^H"](select_low(a, R, 4)) - real.x_r).abs().mean())


def test_starts_of_the_departures():
    """Deterministic r: those of the partition; the public code: every slice; all others: multiples of 4."""
    torch.manual_seed(0)
    kinds = HAGANSettings, DeterministicStartSettings, PublicHAGANSettings
    models = [algorithm(kind, fraction=1 / 4) for kind in kinds]
    starts = [{model.draw_start() for _ in range(600)} for model in models]
    assert starts == [set(range(0, 25, 4)), {0, 8, 16, 24}, set(range(25))]


def test_public_losses():
    """One cross-entropy of the averaged logits; (6) weighs 1 and (7) 1/2."""
    public, paper = algorithm(PublicHAGANSettings), algorithm()
    logits = torch.tensor([[0.3], [-1.2]]), torch.tensor([[2.0], [0.1]])
    mean = ((logits[0] + logits[1]) / 2).sigmoid()
    assert torch.isclose(public.adversarial(logits, True), -mean.log().mean())
    assert torch.isclose(public.adversarial(logits, False), -(1 - mean).log().mean())
    real = real_of(paper, volumes())  # the same weights in both
    assert torch.isclose(public.high_loss(real), paper.high_loss(real) / 5)
    assert torch.isclose(public.ground_loss(real), paper.ground_loss(real) / 10)


@pytest.mark.parametrize("kind", [ConditionalHAGANSettings, ConditionalJointHAGANSettings])
def test_the_classifier_in_the_losses(kind):
    """Cross-entropy of the classes: D learns it from real volumes alone, in G's loss it weighs .1."""
    model, label = algorithm(kind), torch.tensor([0, 1])
    real, generator = real_of(model, volumes(), label=label), torch.Generator().manual_seed(2)
    shift = torch.tensor([2.0, 0.0, 0.0])
    on_real = [torch.randn(2, 3, generator=generator) + shift for _ in range(2)]  # of D^H and D^L
    on_fake = [torch.randn(2, 3, generator=generator) - shift for _ in range(2)]
    model.judge = lambda x_r, x_low, r: on_real if x_r is real.x_r else on_fake
    a, b = (torch.cat([part[:, :1] for part in logits], 1).sigmoid() for logits in (on_real, on_fake))
    of_real, of_fake = (-(sum(v)[:, 1:] / 2).softmax(1)[[0, 1], label].log().mean() for v in (on_real, on_fake))
    assert torch.isclose(model.real_loss(real), -a.log().sum(1).mean() + of_real)
    assert torch.isclose(model.fake_loss(real), -(1 - b).log().sum(1).mean())
    assert torch.isclose(model.generator_loss(real), -b.log().sum(1).mean() + 0.1 * of_fake)


def test_a_conditional_model_hears_the_class():
    model, label = algorithm(ConditionalHAGANSettings, classes=3), torch.tensor([0, 2])
    losses = model.step({"x": volumes(), "label": label})
    assert all(torch.isfinite(v) for v in losses.values())
    z = torch.randn(1, 16)
    common, high = model.networks["G^A"], model.networks["G^H"]
    one, two = (sample(common, high, model.with_label(z, torch.tensor([k]))) for k in (0, 1))
    assert one.shape == (1, 1, 32, 32, 32) and (one - two).abs().max() > 1e-4
    scores = torch.tensor([[9.0, 2.0, 0.0, 0.0], [9.0, 0.0, 0.0, 2.0]])  # the first column judges real or fake
    assert torch.isclose(model.label_loss((scores, scores), label), F.cross_entropy(scores[:, 1:], label))
