"""The planner: levers, what fits a card, advice after an out-of-memory error."""

import functools

import pytest
import torch
from torch import nn
from toys import FLOAT, segresnet, small_hagan, wgan

from medsynth_lib.profiling import memory, planner
from medsynth_lib.profiling.ledger import account
from medsynth_lib.profiling.networks import hagan, unsupervised
from medsynth_lib.profiling.planner import Setting, plan
from medsynth_lib.settings import JointHAGANSettings
from medsynth_lib.training.hagan_build import build as build_hagan
from medsynth_lib.training.loop import Algorithm


@pytest.mark.slow
def test_levers_of_the_planner():
    base = plan(segresnet, 32, 2)
    assert plan(segresnet, 32, 2, checkpointing=True).parts["activations"] < 0.8 * base.parts["activations"]
    assert plan(segresnet, 32, 2, "16-bit").peak < 0.6 * base.peak
    assert plan(segresnet, 32, 2, sub_volume=0.5).parts["inputs"] == base.parts["inputs"] / 2
    half = plan(segresnet, 32, 2, "bf16 autocast")
    assert half.parts["parameters"] == base.parts["parameters"]
    assert plan(segresnet, 32, 2, "bf16 autocast", checkpointing=True).peak < half.peak


@pytest.mark.slow
def test_levers_of_the_lean_form_alone():
    """Each does what it is named after: half of the moments; fewer activations; no up-sampled tensor in G^H."""
    small = functools.partial(hagan, latent=16, c=4)
    reports = {levers: plan(functools.partial(small, levers=levers), 32) for levers in ((), ("optimiser state",))}
    plain, leaner = (report.parts["optimiser state"] for report in reports.values())
    assert leaner == pytest.approx(plain / 2, rel=1e-3)
    fused = plan(functools.partial(small, levers=("up-sampling",)), 32)
    both = plan(functools.partial(small, levers=("up-sampling", "activations")), 32)
    stored = [r.layers.filter(like="G^H", axis=0)["most"].sum() for r in (reports[()], fused)]
    assert stored[1] < 0.8 * stored[0]
    assert both.timeline["activations"].max() < 0.8 * fused.timeline["activations"].max()


@pytest.mark.slow
def test_baselines_see_whole_volumes():
    """Eight times the voxels, eight times the activations; and fused up-sampling takes the largest of them away."""
    small, large = (plan(wgan, size, batch=2) for size in (16, 32))
    assert list(large.phases.index) == ["D", "G"]
    assert large.timeline["activations"].max() == pytest.approx(8 * small.timeline["activations"].max(), rel=0.1)
    fused = plan(functools.partial(wgan, fused=True), 32, batch=2)
    assert fused.phases["peak"]["G"] < 0.8 * large.phases["peak"]["G"]
    assert fused.parts["parameters"] == large.parts["parameters"]
    weights = sum(p.numel() for n in wgan(32).networks.values() for p in n.parameters())
    assert large.parts["parameters"] == weights * FLOAT


def test_requests_that_make_no_sense():
    with pytest.raises(ValueError, match="precision 'fp8'"):
        plan(segresnet, 16, precision="fp8")
    with pytest.raises(ValueError, match="no blocks"):
        plan(lambda: nn.Sequential(nn.Conv3d(1, 1, 3, padding=1)), 8, checkpointing=True)


@pytest.fixture
def plain_plan(monkeypatch):
    """Plans of size^3 x batch KiB, so that the arithmetic is plain; checkpointing halves them."""

    def plan(build, size, batch, checkpointing=False, **_):
        return type("Report", (), {"peak": size**3 * batch * 1024 / (2 if checkpointing else 1)})

    monkeypatch.setattr(planner, "plan", plan)


def test_largest_setting(plain_plan):
    """1 GiB aside, 15 % more than the peak."""
    table = planner.largest(None, (64, 128, 256), (1, 2, 4), cards=(1, 4, 80))
    assert table.loc[1].isna().all()
    assert tuple(table.loc[4, ["size", "batch"]]) == (128, 1) and tuple(table.loc[80, ["size", "batch"]]) == (256, 4)
    assert table.loc[4, "card_gib"] == pytest.approx(1 + 1.15 * 2)


@pytest.mark.slow
def test_what_is_planned_already_is_not_planned_again(monkeypatch, capsys):
    asked = []

    def planned(build, size, batch=1, **other):
        asked.append(Setting(size, batch, **{k: v for k, v in other.items() if k != "channels"}))
        return plan(build, size, batch, **other)

    for module in (memory, planner):
        monkeypatch.setattr(module, "plan", planned)
    network = "toys:segresnet"
    assert memory.main([network, "--size", "8", "16", "--batch", "1", "2"]) == 0
    assert asked == [Setting(16, 2)] and "16^3, batch 2: peak" in capsys.readouterr().out  # it fits all cards
    setting, error = Setting(16, 2), torch.OutOfMemoryError("CUDA out of memory")
    lines = planner.advice(
        error, segresnet, setting, 2**30, [("other", lambda: segresnet())], {setting: 6 * 2**30}
    ).splitlines()
    assert lines[1] == "  16^3, batch 2, fp32: about 7.9 GiB" and "other: about 1.0 GiB" in lines[-1]
    assert Setting(16, 1) in asked and asked.count(setting) == 2  # once more, of the other network


def test_out_of_memory_becomes_advice(plain_plan):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    lines = planner.advice(error, segresnet, Setting(128, 2), memory=4 * 2**30).splitlines()
    assert lines[0] == "Out of memory: the device has 4.0 GiB. Estimated needs:"
    assert lines[1:4] == [
        "  128^3, batch 2, fp32: about 5.6 GiB",
        "  128^3, batch 1, fp32: about 3.3 GiB, fits, but tightly",
        "  128^3, batch 2, fp32, checkpointing: about 3.3 GiB, fits, but tightly",
    ]
    assert planner.advice(RuntimeError("shapes differ"), None, Setting(16), memory=2**30) is None
    assert planner.is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    )


@pytest.mark.parametrize("build, given, proposed", [
    (small_hagan, None, "0.0625"),  # its own share is 1/8
    (small_hagan, 1 / 4, "0.125"),
    (segresnet, None, "0.5"),  # it has none, so it is trained on whole volumes
])  # fmt: skip
def test_advice_halves_the_share_that_is_trained_on(plain_plan, build, given, proposed):
    error, setting = torch.OutOfMemoryError("CUDA out of memory"), Setting(64, sub_volume=given)
    settings = [line.partition(":")[0] for line in planner.advice(error, build, setting, memory=2**30).splitlines()]
    assert f"  64^3, batch 1, fp32, sub-volume {proposed}" in settings


def test_advice_on_a_builder_that_must_be_given_a_share(plain_plan):
    def build(size, sub_volume):
        return small_hagan(size, sub_volume)

    def build_any(size, sub_volume=None):
        return small_hagan(size, sub_volume or 0.5)

    for builder in (build, build_any):
        error = torch.OutOfMemoryError("CUDA out of memory")
        assert "sub-volume 0.5" in planner.advice(error, builder, Setting(64), memory=2**30)


def test_advice_on_a_step_that_cannot_be_planned():
    """Its course depends on values: no line, but a word about it."""

    class Choosing(Algorithm):
        reads, networks, optimisers = ("x",), {}, {}

        def step(self, batch, run=None):
            return batch["x"][batch["x"] > 0].sum()

    text = planner.advice(MemoryError(), Choosing, Setting(None, 2), 2**30, sample={"x": torch.zeros(4)})
    assert "cannot be planned" in text


@pytest.mark.slow
def test_every_network_that_ever_learns_is_planned():
    """HA-GAN whose encoders learn before the adversarial phase alone: two moments of all seven networks, a count each."""
    settings = JointHAGANSettings(size=32, latent=8, c=2, recovery_first=0.5)
    report = account(lambda: unsupervised(build_hagan(settings), 1, 32))
    parameters = [p for network in build_hagan(settings).networks.values() for p in network.parameters()]
    assert report.parts["optimiser state"] == sum(2 * 4 * p.numel() + 4 for p in parameters)
