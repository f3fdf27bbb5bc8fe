"""HA-GAN's lean form: each lever equals the plain form it stands beside; every network, every step; what it saves."""

import copy
from functools import partial

import hagan_toys as toys
import pytest
import torch
import torch.nn.functional as F
from hagan_toys import R, real_of, same_state, volumes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medsynth_lib.models import hagan as models
from medsynth_lib.models import hagan_lean
from medsynth_lib.settings import (
    ConditionalHAGANSettings,
    HAGANSettings,
    JointHAGANSettings,
    PublicHAGANSettings,
    WithoutLowBranchSettings,
)
from medsynth_lib.training import hagan_joint
from medsynth_lib.training import hagan_lean as training
from medsynth_lib.training.hagan import DISCRIMINATORS, GENERATOR, low_resolution, select_high
from medsynth_lib.training.hagan_build import build
from medsynth_lib.training.hagan_lean import SecondMomentAdam, recompute
from medsynth_lib.training.loop import Run, fit

FORMS = dict(lean=False), dict(lean=True)
SIZES = 32, pytest.param(64, marks=pytest.mark.slow)
PHASES = dict(recovery_first=0.2, beta_1=0.5)
AS_PRINTED = dict(recovery_first=0.0, encoder_rate=1.0)


def algorithm(dtype=torch.float32, kind=PublicHAGANSettings, **changes):
    model = toys.algorithm(kind, **dict(lean=True) | changes)
    for network in model.networks.values():
        network.to(dtype)
    return model


def relative(have, want):
    """Largest difference between two dictionaries of tensors, as a share of the largest value."""
    assert have.keys() == want.keys() and want
    return max(float((have[k] - want[k]).abs().max()) for k in want) / max(float(v.abs().max()) for v in want.values())


# -- layers ------------------------------------------------------------------------------------------------------------------


STRIDES = (2, 2, 2), (1, 1, 1)
UP_SAMPLING = [
    hagan_lean.Products(),
    hagan_lean.Plain((1, 1, 1), (1, 1, 1)),
    hagan_lean.Transposed(*STRIDES),
    hagan_lean.Phases(*STRIDES),
]


@pytest.fixture(params=["CPU", "GPU"])
def device(request, monkeypatch):
    """Run a test with the operations that are chosen on a CPU, and with those that are chosen on a GPU, where there is none."""
    monkeypatch.setattr(hagan_lean, "on_gpu", lambda x: request.param == "GPU")
    monkeypatch.setattr(
        hagan_lean, "SMALL", 2**12
    )  # values: small test volumes, too, are cut into groups, but not all of them
    return request.param


def test_which_form_of_up_sampling_runs(device):
    """By size: products, transposed, phases on a CPU; on a GPU plain, transposed, and phases for one channel."""
    asked = [(4, 5), (8, 5), (16, 5), (32, 5), (32, 1)]

    def names(dtype):
        sizes = [
            (hagan_lean.UpConv3d(3, channels, 3), torch.zeros(1, 3, 1, 1, n, dtype=dtype)) for n, channels in asked
        ]
        return " ".join(type(layer.form(x)).__name__ for layer, x in sizes)

    expected = ["Products Transposed Transposed Phases Phases"] * 2
    if device == "GPU":
        expected = ["Plain Plain Transposed Transposed Phases", "Plain Plain Plain Transposed Phases"]
    assert names(torch.float32) == names(torch.float64) == expected[0] and names(torch.bfloat16) == expected[1]


@pytest.mark.parametrize("chosen", UP_SAMPLING, ids=lambda form: type(form).__name__)
def test_up_sampling_and_convolution_are_equal_in_every_form(chosen, monkeypatch):
    """Output and gradients, on odd sides, in double precision."""
    monkeypatch.setattr(hagan_lean.UpConv3d, "form", lambda self, x: chosen)
    torch.manual_seed(0)
    plain = nn.Conv3d(3, 5, 3, padding=1).double()
    lean = hagan_lean.UpConv3d(3, 5, 3, padding=1).double()
    lean.load_state_dict(plain.state_dict())
    x, found = torch.randn(2, 3, 4, 5, 7, dtype=torch.float64), []
    for form in (plain, lean):
        start = x.clone().requires_grad_()
        y = form(F.interpolate(start, scale_factor=2) if form is plain else start)
        y.pow(3).sum().backward()
        found.append({"y": y.detach(), "x": start.grad, "weight": form.weight.grad, "bias": form.bias.grad})
    assert all(relative({k: found[1][k]}, {k: found[0][k]}) < 1e-12 for k in found[0])


@pytest.mark.parametrize("learns", [True, False])
def test_a_chain_of_layers_keeps_one_activation_each(learns, device):
    """Same gradients as the plain form, from at most 0.6 of the memory; a frozen chain keeps the norms' inputs alone."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        models.block(8, 8), models.block(8, 8, up=True), models.down(8, 16), models.block(16, 8)
    ).double()
    for parameter in plain.parameters():
        parameter.requires_grad_(learns).data.add_(torch.randn_like(parameter) * 0.1)
    lean = copy.deepcopy(plain)
    hagan_lean.make_lean(lean)
    x, found, kept = torch.randn(2, 8, 8, 8, 8, dtype=torch.float64), [], []
    for form in (plain, lean):
        weights, storages = {p.data_ptr() for p in form.parameters()}, {}
        start = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: note(t, weights, storages), lambda t: t):  # noqa: B023
            out = form(start)
        out.square().sum().backward()
        found.append({"x": start.grad} | {k: p.grad for k, p in form.named_parameters() if learns})
        kept.append(sum(storages.values()))
    assert relative(found[1], found[0]) < 1e-12
    activations = 8 * 2 * (8 * 8**3 + 8 * 16**3 + 16 * 8**3 + 8 * 8**3)  # bytes of the convolutions' outputs
    assert kept[1] < activations * 1.05 + (x.nbytes if learns else 0) and kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("small", [0, 2**40])  # always in parts; never
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("learns", [True, False])
def test_gradients_by_groups_are_autograds(small, layout, learns, monkeypatch):
    """Of ReLU(GroupNorm(y)): y's, in the place of the output; weight's and bias's where they learn."""
    monkeypatch.setattr(hagan_lean, "SMALL", small)
    draw, groups, eps = torch.Generator().manual_seed(0), 3, 1e-5
    grad, y = (
        torch.randn(2, 6, 3, 4, 5, dtype=torch.float64, generator=draw).to(memory_format=layout) for _ in range(2)
    )
    weight, bias = torch.randn(2, 6, dtype=torch.float64, generator=draw)
    given = [v.clone().requires_grad_() for v in (y, weight, bias)]
    F.group_norm(given[0], groups, *given[1:], eps).relu().backward(grad)
    x, mean, scale = hagan_lean.norm_relu(y, weight, bias, groups, eps)
    assert x.is_contiguous(memory_format=layout)
    found = hagan_lean.by_groups(grad, x, y, weight, mean, scale, groups, [True, learns, learns])
    assert found[0] is x
    for have, want in zip(found if learns else found[:1], given, strict=False):
        assert relative({"": have}, {"": want.grad}) < 1e-10
    assert learns or found[1] is found[2] is None


def note(tensor, weights, storages):
    """Remember how many bytes a saved activation takes; weights are there anyway."""
    if tensor.data_ptr() not in weights and tensor.dim() == 5:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor


def test_adam_with_the_second_moment_alone_is_adam_to_the_bit():
    """Also when it steps within the backward pass, and after its state went through a dictionary."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(300, 700), nn.Tanh(), nn.Linear(700, 3))
    lean, at_once = copy.deepcopy(plain), copy.deepcopy(plain)
    optimisers = [torch.optim.Adam(plain.parameters(), 1e-2, betas=(0.0, 0.999))]
    optimisers += [SecondMomentAdam(form.parameters(), 1e-2) for form in (lean, at_once)]
    optimisers[2].at_once(True)
    for _ in range(3):
        x = torch.randn(8, 300)
        for form, optimiser in zip((plain, lean, at_once), optimisers, strict=True):
            optimiser.zero_grad()
            form(x).square().mean().backward()
            assert (form[0].weight.grad is None) == (form is at_once)
            optimiser.step()
            state = optimiser.state_dict()
            assert form is plain or set(state["state"][0]) == {"step", "exp_avg_sq"}
            optimiser.load_state_dict(copy.deepcopy(state))
        assert all(
            torch.equal(p, q)
            for form in (lean, at_once)
            for p, q in zip(plain.parameters(), form.parameters(), strict=True)
        )


# -- networks and steps ------------------------------------------------------------------------------------------------------


def inputs(size, dtype):
    """One input for each network."""
    torch.manual_seed(2)
    a, x = torch.randn(2, 8, *[size // 4] * 3, dtype=dtype), volumes(2, size, dtype)
    x_r = select_high(x, R, size // 8)
    return {"G^A": (torch.randn(2, 16, dtype=dtype),), "G^L": (a,), "G^H": (a[:, :, : size // 32],), "D^H": (x_r, 0.3),
            "D^L": (low_resolution(x),), "E^H": (x_r,), "E^G": (a,)}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("learns", [True, False])
def test_every_network_has_the_same_output_and_gradients(size, learns):
    """fp64, relative 1e-10; of the input and, where it learns, of every parameter. Names stay, and the mean stays plain."""
    plain, lean = (algorithm(torch.float64, size=size, **form).networks for form in FORMS)
    for name, (first, *rest) in inputs(size, torch.float64).items():
        assert lean[name].state_dict().keys() == plain[name].state_dict().keys()
        found = []
        for network in (plain[name], lean[name]):
            network.requires_grad_(learns)
            x = first.clone().requires_grad_()
            out = network(x, *rest)
            (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
            grads = {k: p.grad for k, p in network.named_parameters() if learns}
            found.append({"output": out.detach(), "input": x.grad} | grads)
        assert relative(found[1], found[0]) < 1e-10, name
    fused = {n: sum(isinstance(m, hagan_lean.UpConv3d) for m in net.modules()) for n, net in lean.items()}
    assert fused["G^A"] == models.levels(size) and fused["G^H"] == 2 and fused["mean G^H"] == 0


def updates(model, x):
    """The four updates on given volumes and a given start, by name: who learns, and the terms of the loss."""
    label = torch.arange(len(x)) if "label" in model.reads else None
    real = real_of(model, x, R, label)
    return {
        "D": (DISCRIMINATORS, lambda: model.real_loss(real), lambda: model.fake_loss(real)),
        "G": (GENERATOR, lambda: model.generator_loss(real)),
        "E^H": (("E^H",), lambda: model.high_loss(real)),
        "E^G": (("E^G",), lambda: model.ground_loss(real)),
    }


def loss_and_gradients(step, size, dtype, b=2, again=(), **changes):
    """Of one update: the gradients that the optimisers are given, and the buffers after it; ``again`` names what recomputes."""
    model, grads = algorithm(dtype, size=size, **changes), {}
    for name in again:
        recompute(model.networks[name])
    model.networks["G^A"].requires_grad_(False)
    names, *terms = updates(model, volumes(b, size, dtype))[step]
    of = {id(p): (n, k) for n in names if n in model.networks for k, p in model.networks[n].named_parameters()}

    def take(parameter):
        assert id(parameter) not in {id(p) for p in grads}
        grads[of[id(parameter)]] = parameter.grad.clone()

    lean = model.settings.lean
    for optimiser in model.optimisers.values():
        optimiser.update = take
        if not lean:
            parameters = optimiser.param_groups[0]["params"]
            optimiser.step = lambda parameters=parameters: [take(p) for p in parameters if p.grad is not None]
    model.noise = lambda real: torch.randn(len(real.x), 16).to(dtype)
    torch.manual_seed(5)
    value = sum(model.update(names, Run(), *terms))
    assert not lean or all(p.grad is None for net in model.networks.values() for p in net.parameters())
    buffers = {(n, k): v for n, net in model.networks.items() for k, v in net.named_buffers()}
    return float(value), grads, buffers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", ["D", "G", "E^H", "E^G"])
def test_every_step_has_the_same_loss_and_gradients(step, size, device):
    """fp64: all within 1e-10, the spectral norms' vectors too. fp32: losses within 1e-5, gradients within 3 times the plain
    form's own error in fp32 (signs of ReLU and L1 flip), over all parameters.
    """
    exact, want, vectors = loss_and_gradients(step, size, torch.float64, lean=False)
    value, have, buffers = loss_and_gradients(step, size, torch.float64)
    assert abs(value - exact) < 1e-10 and relative(have, want) < 1e-10 and relative(buffers, vectors) < 1e-10
    errors = []
    for form in FORMS:
        value, have, _ = loss_and_gradients(step, size, torch.float32, **form)
        assert abs(value - exact) < 1e-5
        errors.append(sum(float((have[k] - want[k]).square().sum()) for k in want) ** 0.5)
    assert errors[1] < 3 * errors[0]


VARIANTS = [
    dict(kind=HAGANSettings),
    dict(kind=WithoutLowBranchSettings),
    dict(kind=ConditionalHAGANSettings),
    dict(fraction=1 / 2),
    dict(channels_last=True, again=("G^L", "G^H")),
]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("step", ["D", "G", "E^G"])
def test_variants_have_the_same_gradients(step, changes, device):
    """Those of other losses and networks, and those of the plain form without a switch that changes none."""
    base = {k: v for k, v in changes.items() if k not in ("channels_last", "again")}
    exact, want, _ = loss_and_gradients(step, 32, torch.float64, lean=False, **base)
    for form in FORMS[base == changes :]:
        value, have, _ = loss_and_gradients(step, 32, torch.float64, **changes | form)
        assert abs(value - exact) < 1e-10 and relative(have, want) < 1e-10


ITERATIONS = [
    (1, dict()),
    (2, dict()),
    (2, dict(kind=JointHAGANSettings, beta_1=0.0, **AS_PRINTED)),
    (2, dict(kind=JointHAGANSettings, **AS_PRINTED)),
]


@pytest.mark.slow
@pytest.mark.parametrize("b, changes", ITERATIONS)
def test_iterations_draw_the_same_numbers_and_end_at_the_same_weights(b, changes):
    """Three whole iterations in fp64: losses and weights within 1e-8; batch size 1 works."""
    torch.set_default_dtype(torch.float64)
    try:
        plain, lean = (algorithm(torch.float64, **changes | form) for form in FORMS)
        for k in range(3):
            losses = []
            for model in (plain, lean):
                torch.manual_seed(k)
                losses.append(model.step({"x": volumes(b, dtype=torch.float64)}))
            assert relative(*reversed(losses)) < 1e-8
    finally:
        torch.set_default_dtype(torch.float32)
    for name in plain.networks:
        assert relative(lean.networks[name].state_dict(), plain.networks[name].state_dict()) < 1e-8


def test_several_processes_and_scaled_losses_step_after_the_backward_pass():
    """Gradients of other processes are still to be added, or a scale to be taken off: no step within the backward pass."""

    for processes, precision, waits in ((2, "32-true", True), (1, "16-mixed", True), (1, "bf16-mixed", False)):
        model, seen = algorithm(), []

        def backward(loss, model=model, seen=seen):
            loss.backward()
            seen.append(all(p.grad is not None for p in model.networks["E^H"].parameters()))

        names, loss = updates(model, volumes())["E^H"]
        model.update(names, Run(processes=processes, precision=precision, backward=backward), loss)
        assert seen == [waits]
        assert all(state["step"] == 1 for state in model.optimisers["E^H"].state.values())
        assert len(model.optimisers["E^H"].state) == len(list(model.networks["E^H"].parameters()))


KINDS = {"public": dict(), "joint": dict(kind=JointHAGANSettings, **PHASES)}


def trained(kind, folder, until=None):
    """Five steps; in the joint form one of recovery, two of counting, two of adversarial training."""
    model, data = algorithm(**KINDS[kind]), [{"x": v} for v in volumes(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hagan_joint, "COUNTING", 0.4)
        often = dict(validate_every=2, checkpoint_every=1)
        fit(model, data, data[:1], folder, steps=5, until=until, seed=0, batch_size=2, **often)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trainings that nothing stopped, by kind."""
    return {kind: trained(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("until", [1, 3, 4])  # the end of recovery; before settling; within adversarial training
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_resumes_to_the_bit(tmp_path, kind, until, whole):
    trained(kind, tmp_path, until)
    again = trained(kind, tmp_path)
    assert same_state(whole[kind], again)
    steps = dict.fromkeys(again.optimisers, 5)
    if kind == "joint":
        steps |= {"D^H": 2, "D^L": 2, "E^H": 1, "E^G": 1}
    for name, optimiser in whole[kind].optimisers.items():
        state, resumed = (o.state_dict()["state"] for o in (optimiser, again.optimisers[name]))
        assert state.keys() == resumed.keys()
        for p, q in ((state[k], resumed[k]) for k in state):
            assert int(p["step"]) == int(q["step"]) == steps[name]
            assert p.keys() == q.keys() and all(torch.equal(torch.as_tensor(p[k]), torch.as_tensor(q[k])) for k in p)


def test_mixed_precision_gives_what_the_plain_form_gives(device):
    """bf16 autocast: both forms differ from fp64 alike."""
    want, errors = loss_and_gradients("G", 32, torch.float64, lean=False)[1], []
    for form in FORMS:
        with torch.autocast("cpu", torch.bfloat16):
            have = loss_and_gradients("G", 32, torch.float32, **form)[1]
        assert all(v.dtype == torch.float32 for v in have.values())
        errors.append(sum(float((have[k] - want[k]).square().sum()) for k in want) ** 0.5)
    assert errors[1] < 1.5 * errors[0]


# -- what it saves -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 256])
def test_an_iteration_takes_at_most_half_of_the_operations(size, monkeypatch):
    """At the paper's widths and batch 2, on the meta device, which computes shapes alone. Deterministic."""
    monkeypatch.setattr(training, "CHUNK", 2**40)  # does not change what is counted
    counts = []
    for form in FORMS:
        with torch.device("meta"):
            model = build(PublicHAGANSettings(size=size, **form))
        with FlopCounterMode(display=False) as counter:
            model.step({"x": torch.empty(2, 1, size, size, size, device="meta")})
        counts.append(counter.get_total_flops())
    print(f"{size}: {counts[0] / 1e9:.0f} and {counts[1] / 1e9:.0f} GFLOP, {counts[1] / counts[0]:.3f}")
    assert counts[1] <= 0.50 * counts[0]


# -- half precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.01), (torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_gradients_in_few_steps_are_autograds(dtype, tolerance, monkeypatch):
    """A GPU's operations on y in a precision and weights in at least single precision, against fp64; nothing comes out larger."""
    monkeypatch.setattr(hagan_lean, "on_gpu", lambda x: True)
    draw, groups, eps = torch.Generator().manual_seed(0), 3, 1e-5
    grad, y = (torch.randn(2, 6, 3, 4, 5, generator=draw).to(dtype) for _ in range(2))
    weight, bias = torch.randn(2, 6, generator=draw).to(torch.promote_types(dtype, torch.float32))
    given = [v.double().clone().requires_grad_() for v in (y, weight, bias)]
    out = F.group_norm(given[0], groups, *given[1:], eps).relu()
    out.backward(grad.double())
    x, mean, scale = hagan_lean.norm_relu(y, weight, bias, groups, eps)
    assert x.dtype == dtype and relative({"": x.double()}, {"": out.detach()}) < tolerance
    found = hagan_lean.in_few_steps(grad, x, y, weight, mean, scale, groups, [True] * 3)
    assert found[0] is x
    sharp = min(tolerance, 1e-5)  # sums are made in the precision of the weights
    for have, want, most in zip(found, given, (tolerance, sharp, sharp), strict=True):
        assert relative({"": have.double()}, {"": want.grad}) < most


def test_linear_layer_keeps_its_weights_once():
    """Under autocast torch keeps a copy in half precision for the backward pass; the lean layer keeps none, and equals it."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(7, 5))
    lean = copy.deepcopy(plain)
    hagan_lean.make_lean(lean)
    assert type(lean[0]) is hagan_lean.Linear
    found, copies = [], []
    for form in (plain, lean):
        x, kept = torch.linspace(-1, 1, 42).view(2, 3, 7).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # noqa: B023
            with torch.autocast("cpu", torch.bfloat16):
                y = form(x)
        y.float().pow(2).sum().backward()
        copies.append(sum(t.numel() == 35 and t.dtype == torch.bfloat16 for t in kept))
        found.append({"y": y.detach().float(), "x": x.grad} | {k: p.grad for k, p in form.named_parameters()})
    assert copies == [1, 0] and relative(found[1], found[0]) < 0.01


def test_unusual_layers_stay_as_they_are():
    """What a lean layer would compute otherwise is left alone."""
    conv = partial(nn.Conv3d, 4, 4, 3, padding=1)
    rows = [
        (nn.Upsample(scale_factor=2, mode="trilinear"), conv()),
        (nn.Upsample(scale_factor=3), conv()),
        (nn.Upsample(scale_factor=2), conv(groups=2)),
        (nn.Upsample(scale_factor=2), conv(padding_mode="replicate")),
        (nn.Upsample(scale_factor=2), nn.Conv3d(4, 4, 3, padding=2, dilation=2)),
        (nn.Upsample(scale_factor=2), nn.Conv3d(4, 4, 1)),
        (nn.Upsample(scale_factor=2), nn.Conv3d(4, 4, 3, padding=1, stride=2)),
        (conv(bias=False), nn.Conv3d(4, 4, 3, padding="same")),
        (conv(), nn.Linear(6, 3, bias=False)),
    ]
    x = torch.randn(1, 4, 6, 6, 6)
    for row in rows:
        plain = nn.Sequential(*row)
        lean = copy.deepcopy(plain)
        hagan_lean.make_lean(lean)
        assert torch.allclose(lean(x), plain(x), atol=1e-5), row
