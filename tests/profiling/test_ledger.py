"""The ledger against numbers worked out by hand and against real steps; its report."""

import functools
import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode
from toys import FLOAT, segresnet, small_hagan, small_lean, trained, unet, wgan

from medsynth_lib.models import hagan_lean
from medsynth_lib.profiling.fake import fake_tensors, tensors
from medsynth_lib.profiling.ledger import Account, Training, account
from medsynth_lib.profiling.networks import hagan, unsupervised
from medsynth_lib.profiling.planner import Setting, plan, training_in
from medsynth_lib.profiling.precision import checkpoint_blocks
from medsynth_lib.profiling.report import OPTIMISER
from medsynth_lib.settings import Pix2PixSettings
from medsynth_lib.training.loop import Algorithm
from medsynth_lib.training.pix2pix import Pix2Pix

ONE = FLOAT  # the gradient of the loss, 1.0: made before the backward pass and read in it, so it counts as stored


def test_linear_layer_with_adam():
    """8 -> 4 on a batch of 3: two moments and a counter a parameter; Adam's denominator is made by a root and a division."""
    report = account(lambda: trained(nn.Linear(8, 4), torch.rand(3, 8)))
    parameters, counters = FLOAT * (8 * 4 + 4), 2 * FLOAT
    assert report.parts == {
        "parameters": parameters,
        "gradients": parameters,
        "optimiser state": 2 * parameters + counters,
        "activations": 0,  # what the layer saves is the input itself
        "temporaries": 2 * FLOAT * 8 * 4,
        "buffers": 0,
        "inputs": FLOAT * 3 * 8,
    }
    standing = 3 * parameters + counters + FLOAT * 3 * 8
    peaks = report.phases["peak"]
    assert report.peak == peaks["optimiser"] == standing + parameters + 2 * FLOAT * 8 * 4
    assert peaks["forward"] == standing + FLOAT * (3 * 4 + 1)  # output and loss
    assert report.kept == report.leaked == 0


def test_an_activation_that_two_layers_save_counts_once():
    """ReLU saves its output, which the next layer saves as its input; the first layer's output is temporary."""
    make = lambda: trained(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.rand(512, 64))  # noqa: E731
    report = account(make)
    assert report.phases["activations"]["backward"] == FLOAT * 512 * 64 + ONE
    assert report.phases["temporaries"]["forward"] == FLOAT * (512 * 64 + 1)  # by then the last output and the loss
    assert report.layers.loc["net.1", "activations"] == FLOAT * 512 * 64


def test_frozen_layers_have_no_gradients():
    def make():
        network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32, bias=False))
        network[0].requires_grad_(False)
        return trained(network, torch.rand(2, 64))

    report = account(make)
    assert report.parts["gradients"] == FLOAT * 64 * 32 and report.parts["parameters"] == FLOAT * (64 * 65 + 64 * 32)
    assert report.parts["optimiser state"] == 2 * FLOAT * 64 * 32 + FLOAT


@pytest.mark.parametrize("checkpointing, stored", [(False, 2 * 5), (True, 4 + 2)])
def test_checkpointed_chain(checkpointing, stored):
    """Five blocks of two tanh each: ten outputs; or four inputs of blocks (the first is the batch) and two computed again."""

    def make():
        block = lambda: nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())  # noqa: E731
        network = nn.Sequential(nn.Sequential(*(block() for _ in range(5))))
        assert not checkpointing or checkpoint_blocks(network) == 5
        return trained(network, torch.rand(1000, 16), optimiser=None)

    report = account(make)
    assert report.timeline["activations"].max() == stored * FLOAT * 1000 * 16 + ONE
    assert report.kept == report.leaked == 0


class Rebuilt(torch.autograd.Function):
    """relu(x + 1) squared, which saves its input alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x + 1).relu().square()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * (x + 1).relu() * gradient


def test_custom_functions_keep_what_they_save():
    class Net(nn.Linear):
        def forward(self, x):
            return Rebuilt.apply(super().forward(x))

    report = account(lambda: trained(Net(16, 16), torch.rand(1000, 16), optimiser=None))
    assert report.phases["activations"]["backward"] == FLOAT * 1000 * 16 + ONE


def test_gradients_dropped_in_hooks_never_add_up():
    def make():
        network = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))

        def apply(parameter):
            with torch.no_grad():
                parameter.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None

        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(apply)
        return trained(network, torch.rand(2, 64), optimiser=None)

    report = account(make)
    assert report.timeline["gradients"].max() == FLOAT * 64 * 64


def test_views_count_once_and_in_place_operations_nothing():
    with FakeTensorMode(), Account() as ledger:
        x = torch.ones(1000)
        view = x.view(10, 100).t()[2:]
        x.add_(1).relu_()
        view.mul_(2)
        assert ledger.total() == 4000
        copy = x + 1
        assert ledger.total() == 8000
        del x
        assert ledger.total() == 8000  # the view holds it
        del view, copy
        assert ledger.total() == 0
        grown = torch.ones(10)
        grown.resize_(100)
        assert ledger.total() == 400


# -- against real steps --------------------------------------------------------------------------------------------------------

PAIRS = {
    "SegResNet 16": (segresnet, Setting(16, 2)),
    "SegResNet 32, checkpointed": (segresnet, Setting(32, 1, checkpointing=True)),
    "UNet 24, half the slices": (unet, Setting(24, 2, sub_volume=0.5)),
    "HA-GAN 32": (small_hagan, Setting(32, 2)),
    "HA-GAN 32, lean": (small_lean, Setting(32, 1)),
    "WGAN 16, whose penalty is differentiated twice": (wgan, Setting(16, 2)),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("HA-GAN" in n)) for n in PAIRS])
def test_fake_steps_hold_what_real_ones_do(name):
    """The same ledger on real tensors, where strides, saved tensors and lifetimes are those of the real kernels: within 3 %."""
    make = functools.partial(training_in, *reversed(PAIRS[name]))
    fake, real = account(make), account(make, fake=False)
    assert abs(fake.peak / real.peak - 1) < 0.03
    assert fake.parts == pytest.approx(real.parts, rel=0.03, abs=1e4)
    assert fake.kept == real.kept == 0
    constants = sum(
        v.nbytes for v in vars(hagan_lean).values() if isinstance(v, torch.Tensor)
    )  # of a module: they stay
    assert fake.leaked <= constants


PIX2PIX = Pix2PixSettings(width=2, loss="l1", learning_rate=1e-3)
BRAIN = {"x": torch.zeros(2, 16, 16, 12), "y": torch.zeros(1, 16, 16, 12), "mask": torch.ones(1, 16, 16, 12) > 0}


@pytest.mark.slow
def test_an_algorithm_of_given_samples():
    """Its volumes are no cubes, and its network is moved to another memory layout when it is made."""
    build = lambda: Pix2Pix(PIX2PIX)  # noqa: E731
    make = functools.partial(training_in, Setting(None, 2), build, sample=BRAIN)
    fake, real = account(make), account(make, fake=False)
    assert fake.peak == pytest.approx(real.peak, rel=0.03) and fake.kept == 0
    assert fake.parts["inputs"] == 2 * sum(v.nbytes for v in BRAIN.values())
    with pytest.raises(ValueError, match="no setting that would make it 32"):
        plan(build, 32, sample=BRAIN)


def allocated(make):
    """Peak of the bytes that the allocator gave out during a real second step, by torch's profiler, and what stood before."""
    made = make()
    made.step()
    for optimiser in made.optimisers.values():
        optimiser.zero_grad()  # the profiler misses the end of what was there before it
    held = [
        [n.state_dict() for n in made.networks.values()],
        [list(o.state.values()) for o in made.optimisers.values()],
    ]
    held = {t.data_ptr(): t.nbytes for t in tensors([*held, made.inputs])}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        made.step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return sum(held.values()) + np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max()


def test_the_allocator_agrees():
    """Independent of the ledger: matrix products take no workspace, so the two records agree within 3 %."""
    layers = [layer for _ in range(4) for layer in (nn.Linear, nn.Tanh)]

    def make():
        network = nn.Sequential(*(layer(256, 256) if layer is nn.Linear else layer() for layer in layers))
        return trained(network, torch.rand(2048, 256))

    assert account(make).peak == pytest.approx(allocated(make), rel=0.03)


# -- the report ----------------------------------------------------------------------------------------------------------------


def test_report_adds_up():
    report = plan(segresnet, 16)
    assert sum(report.parts.values()) == report.peak == report.timeline["peak"].max() == report.phases["peak"].max()
    assert report.layers["peak"].sum() == report.peak and (report.layers["most"] >= report.layers["peak"]).all()
    assert list(report.phases.index) == ["forward", "backward", "optimiser"]
    assert (report.timeline.drop(columns="phase") >= 0).all(axis=None)
    weights = sum(p.numel() for p in segresnet().parameters()) * FLOAT
    assert report.parts["parameters"] == weights and str(report).startswith("peak ")
    named = {name for name, _ in segresnet().named_modules()}
    assert {name for name in report.layers.index if "." in name} <= named


def test_values_that_fake_tensors_lack():
    """An index may be drawn, as HA-GAN draws r; a step whose course depends on values is refused by name."""

    def make(step):
        return lambda: Training(step, {}, {}, {})

    drawn = lambda: torch.ones(8)[int(torch.randint(8, ())) :].sum()  # noqa: E731
    assert account(make(drawn)).peak == FLOAT * 8 + 8  # volume and index
    with pytest.raises(ValueError, match="nonzero.default needs real values"):
        account(make(lambda: torch.ones(8).nonzero()))


def test_the_garbage_collector_is_left_as_it_was():
    """Within `account` it passes over what was there before; then no longer, also where the step has failed."""
    before, within = gc.get_freeze_count(), []

    def make(step):
        return lambda: within.append(gc.get_freeze_count()) or Training(step, {}, {}, {})

    account(make(lambda: torch.ones(8)))
    assert gc.get_freeze_count() == before < within[0]
    with pytest.raises(ValueError):
        account(make(lambda: torch.ones(8).nonzero()))
    assert gc.get_freeze_count() == before < within[1]


@pytest.mark.slow
def test_hagan_phases_and_layers():
    """Phases are found from the updates; the constants of the networks' module stay real."""
    report = plan(small_hagan, 32)
    assert type(hagan_lean.EXPAND) is torch.Tensor
    assert list(report.phases.index) == ["D", "G", "E^H", "E^G"]
    convolution = hagan(32, latent=16, c=4).networks["D^H"].layers[0]
    held = report.layers["parameters"].filter(regex=r"^D\^H\.layers\.0(\.|$)").sum()
    assert held == (convolution.weight.numel() + len(convolution.weight)) * FLOAT


def test_the_largest_layer_is_a_layer():
    """Adam's temporaries are the most here, and belong to none."""
    network = nn.Sequential(nn.Linear(8, 400), nn.Linear(400, 400), nn.Linear(400, 8))
    report = account(lambda: trained(network, torch.rand(2, 8)))
    assert report.layers["temporaries"].idxmax() == OPTIMISER and report.largest_layer().startswith("net")


# -- phases, fake tensors ------------------------------------------------------------------------------------------------------


class Two(Algorithm):
    """Two updates: of "G^A" and "G^H" together, then of "E^H"; between them an operation that belongs to neither."""

    reads = ("x",)

    def __init__(self):
        self.networks = {name: nn.Linear(4, 4) for name in ("G^A", "G^H", "E^H")}
        self.optimisers = {name: torch.optim.SGD(n.parameters(), 0.1) for name, n in self.networks.items()}

    def step(self, batch, run=None):
        for names in (("G^A", "G^H"), ("E^H",)):
            run.backward(sum(self.networks[name](batch["x"]).sum() for name in names))
            for name in names:
                self.optimisers[name].step()
                self.optimisers[name].zero_grad()
            batch["x"].new_zeros(1000)
        return {}


def test_updates_of_a_plain_algorithm_are_phases():
    """Nothing of the algorithm is changed for it, and what comes after an update belongs to no phase."""
    algorithm = Two()
    before = dict(vars(algorithm))
    report = account(lambda: unsupervised(algorithm, 1, sample={"x": torch.zeros(4)}), fake=False)
    assert list(report.phases.index) == ["G", "E^H"] and vars(algorithm) == before
    between = report.timeline[report.timeline["temporaries"] >= 4000]
    assert set(between["phase"]) == {""}


class Changing(Two):
    """Its first half updates one network, its second half another one."""

    def begin_step(self, step, steps):
        self.name = "G^A" if step < steps / 2 else "E^H"

    def step(self, batch, run=None):
        run.backward(self.networks[self.name](batch["x"]).sum())
        self.optimisers[self.name].step()
        return {}


def test_a_training_that_begins_otherwise_than_it_ends_is_accounted_at_both_ends():
    report = account(lambda: unsupervised(Changing(), 1, sample={"x": torch.zeros(4)}), fake=False)
    assert list(report.phases.index) == ["G", "E^H"]


def test_group_norm_of_fake_tensors_has_the_gradients_shapes():
    def gradients():
        x = torch.rand(2, 4, 3, 3, 3).requires_grad_()
        weight, bias = torch.ones(4).requires_grad_(), torch.ones(4).requires_grad_()
        with Account():
            nn.functional.group_norm(x, 2, weight, bias).sum().backward()
        return [(v.grad.shape, v.grad.stride(), v.grad.dtype) for v in (x, weight, bias)]

    with fake_tensors():
        found = gradients()
    assert found == gradients()


def test_spectral_norm_does_not_warm_up_on_fake_tensors():
    """Real: fifteen iterations of two products at the beginning. Fake: one, and nothing of torch stays changed."""

    class Counter(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.products += func is torch.ops.aten.mv.default
            return func(*args, **kwargs or {})

    def products():
        with Counter() as counter:
            spectral_norm(nn.Conv3d(2, 3, 3))
        return counter.products

    real = products()
    with fake_tensors():
        assert products() == real - 2 * 14
    assert products() == real
