"""What a training step keeps in memory, and what fits on which card: an accountant that allocates nothing, and a planner.

    python -m medsynth_lib.profiling.memory SegResNet --size 128 --batch 2 --precision "bf16 autocast"
    python -m medsynth_lib.profiling.memory HA-GAN lean=True --size 64 128 256 --batch 1 2 4
    python -m medsynth_lib.profiling.memory alpha-GAN --size 64 128 256
    python -m medsynth_lib.profiling.memory package.module:function --checkpointing

The accountant runs the real step on fake tensors, which have shapes but no data. A dispatch mode sees every operation below
autograd and follows each storage by weak reference, from the operation that made it to the moment nobody holds it any more.
What it cannot see is what kernels use inside (workspaces), what an allocator rounds up, and the GPU context: `on_a_card`.
"""

import argparse
import ast
import contextlib
import functools
import gc
import importlib
import inspect
import itertools
import sys
import warnings
import weakref
from dataclasses import asdict, dataclass, replace
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

PARTS = ("parameters", "gradients", "optimiser state", "activations", "temporaries", "buffers", "inputs")
MIB, GIB = 2**20, 2**30
FORWARD, AGAIN, BACKWARD = range(3)
OUTSIDE = "(outside any layer)"  # made in no named module's forward pass, nor in its backward pass: inputs, second derivatives
OPTIMISER = "optimiser step"
TIGHT = 0.8  # of a card: the paper's card held up to 22 % more than `on_a_card` says (Table VIII at 128 and 256)
ACTIVE = []  # the accounts that `phase` speaks to


class Storage:
    """One block of memory, however many views share it."""

    def __init__(self, layer, moment):
        self.size, self.layer, self.moment, self.part = 0, layer, moment, "temporaries"


class Account(TorchDispatchMode):
    """A ledger of all tensor storages that operations make or read while it is active, real or fake.

    ``events`` lists (bytes, Storage, phase): positive where a storage appears, negative where it ends. A storage is one of
    "activations" if it is made in one moment of a step (`moment`) and read in a later one, whoever kept it: autograd, a custom
    Function or a checkpoint. `own` names the rest; what has no name is temporary.
    """

    def __init__(self):
        super().__init__()
        self.live, self.events, self.parameters, self.gradients = {}, [], {}, {}
        self.phases, self.layers, self.names, self.nodes = [""], [""], weakref.WeakKeyDictionary(), {}
        self.backward = False  # whether the last operation was in a backward pass

    def __enter__(self):
        def leave(*_):
            self.layers.pop()

        self.handles = [
            hooks.register_module_forward_pre_hook(lambda m, _: self.layers.append(self.names.get(m, self.layers[-1]))),
            hooks.register_module_forward_hook(leave, always_call=True),
            register_optimizer_step_pre_hook(lambda *_: self.layers.append(OPTIMISER)),
            register_optimizer_step_post_hook(leave),
        ]
        ACTIVE.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        ACTIVE.remove(self)
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # a question, as often as all operations together
            return func(*args)
        self.find_gradients()
        now = moment()
        layer = self.layer(now)
        for tensor in tensors((args, kwargs)):
            storage = self.see(tensor, layer, now)
            if storage.moment < now and storage.part == "temporaries":
                storage.part = "activations"
        out = run(func, args, kwargs or {})
        for tensor in tensors(out):
            self.see(tensor, layer, now)
        return out

    def layer(self, now):
        """The module whose forward pass runs; in a backward pass the one that made the autograd node that runs.

        Nodes are numbered as they are made, just before their operation gets here: the first to come with a number made it.
        """
        if now < BACKWARD:
            self.nodes.setdefault(torch.autograd._get_sequence_nr() - 1, self.layers[-1])
            return self.layers[-1]
        node = torch._C._current_autograd_node()
        return self.nodes.get(node._sequence_nr(), "") if node is not None else self.layers[-1]

    def see(self, tensor, layer="", now=FORWARD):
        """The Storage of a tensor, entered if it is new, corrected if it was resized."""
        block = tensor.untyped_storage()
        key, size = block._cdata, block.nbytes()
        if key not in self.live:
            self.live[key] = Storage(layer, now), weakref.ref(block, lambda _: self.end(key))
        storage = self.live[key][0]
        if size != storage.size:
            self.enter(size - storage.size, storage)
        return storage

    def enter(self, change, storage):
        storage.size += change
        self.events.append((change, storage, self.phases[-1]))

    def end(self, key):
        storage = self.live.pop(key)[0]
        self.enter(-storage.size, storage)

    def find_gradients(self, anyway=False):
        """Autograd makes a gradient as a temporary and hands it to its parameter without an operation: so look, in a backward
        pass and at the operation after it; at all of them it would take a sixth of an account's time.
        """
        before, self.backward = self.backward, moment() != FORWARD
        for name, parameter in self.parameters.items() if before or self.backward or anyway else ():
            gradient = parameter.grad
            seen = self.gradients.get(name)
            if gradient is not None and (seen is None or seen() is not gradient):
                self.gradients[name] = weakref.ref(gradient)
                self.own("gradients", {name: gradient})

    def own(self, part, named):
        """Say that these tensors (a dictionary by name) are parameters, inputs, ..."""
        for name, value in named.items():
            storage = self.see(value)
            storage.part, storage.layer = part, name.rpartition(".")[0]

    def start(self):
        """Forget the past: what is alive now is where the events begin."""
        gc.collect()
        self.events = [(storage.size, storage, "") for storage, _ in self.live.values()]

    def total(self):
        """Bytes alive now."""
        return sum(storage.size for storage, _ in self.live.values())


def run(func, args, kwargs):
    """An operation. A number that is read from a fake tensor, such as a drawn index, is True, 1.0 or 0."""
    try:
        return func(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        if func is not torch.ops.aten._local_scalar_dense.default:
            raise ValueError(f"{func} needs real values, which fake tensors lack; keep it out of the step") from error
    return True if args[0].dtype is torch.bool else 1.0 if args[0].is_floating_point() else 0


def moment():
    """Outside a backward pass; in one, but with gradients, as a checkpoint computes its block again; or in one."""
    if torch._C._current_graph_task_id() == -1:
        return FORWARD
    return AGAIN if torch.is_grad_enabled() else BACKWARD


def tensors(tree):
    """The tensors with a storage among the leaves of nested lists and dictionaries."""
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.layout is torch.strided]


@contextlib.contextmanager
def phase(name):
    """Name the part of a training step within this block, for the peaks per phase; does nothing without an accountant."""
    accounts = list(ACTIVE)
    for account_ in accounts:
        account_.phases.append(name)
    try:
        yield
    finally:
        for account_ in accounts:
            account_.phases.pop()


@dataclass
class Training:
    """What the accountant needs of a training: ``step()``, networks and optimisers by name, and the batch's tensors by name."""

    step: callable
    networks: dict
    optimisers: dict
    inputs: dict

    def declare(self, ledger):
        """Tell an Account whose tensors are whose."""
        for net, network in self.networks.items():
            named = functools.partial(full_name, net)
            ledger.names.update({module: named(path) for path, module in network.named_modules()})
            ledger.own("buffers", {named(path): buffer for path, buffer in network.named_buffers()})
            ledger.parameters |= {named(path): parameter for path, parameter in network.named_parameters()}
        ledger.own("parameters", ledger.parameters)
        for name, optimiser in self.optimisers.items():
            state = tensors(list(optimiser.state.values()))
            ledger.own("optimiser state", {f"{name}.{k}": tensor for k, tensor in enumerate(state)})
        ledger.own("inputs", self.inputs)
        ledger.find_gradients(anyway=True)


def full_name(network, path):
    """ "D^H" and "layers.0.parametrizations.weight.original" make "D^H.layers.0.weight.original"."""
    return f"{network}.{path}".replace(".parametrizations", "").strip(".")


@dataclass
class Report:
    """The memory of one step, in bytes.

    Attributes:
        peak: the most that was alive at once.
        parts: the peak by ``PARTS``.
        phases: DataFrame, a row a phase: the parts at the phase's own peak, and "peak".
        layers: DataFrame, a row a module path: what it holds at the step's peak, by parts; "peak", their sum; and "most", the
            most it held at any time. Tensors belong to the layer that made them, gradients and parameters to their owner.
        timeline: DataFrame of the parts, a row an event, with "peak", their sum, and "phase": for a stacked area.
        kept: what the step left behind: 0 once training is steady.
        leaked: what is still alive after the training itself is gone: 0, unless something else holds on to its tensors.
    """

    peak: int
    parts: dict
    phases: pd.DataFrame
    layers: pd.DataFrame
    timeline: pd.DataFrame
    kept: int = 0
    leaked: int = 0

    def largest_layer(self):
        """The row of ``layers`` that holds most activations and temporaries, added; no row that is no layer."""
        layers = self.layers.drop(index=[OUTSIDE, OPTIMISER], errors="ignore")
        return (layers["activations"] + layers["temporaries"]).idxmax() if len(layers) else OUTSIDE

    def __str__(self):
        parts = ", ".join(f"{name} {size / MIB:.0f}" for name, size in self.parts.items())
        return f"peak {self.peak / MIB:.0f} MiB: {parts}"


def report(events):
    """The Report of an Account's events."""
    changes = [change for change, _, _ in events]
    held = pd.DataFrame(
        {"layer": [s.layer or OUTSIDE for _, s, _ in events], "part": [s.part for _, s, _ in events], "bytes": changes}
    )
    steps = np.zeros((len(events), len(PARTS)), np.int64)
    steps[np.arange(len(events)), held["part"].map(PARTS.index)] = changes
    timeline = pd.DataFrame(steps.cumsum(0), columns=PARTS)
    timeline["peak"], timeline["phase"] = timeline.sum(axis=1), [name for _, _, name in events]
    top = int(timeline["peak"].argmax())
    phases = timeline.loc[timeline.groupby("phase", sort=False)["peak"].idxmax()].set_index("phase")
    layers = held[: top + 1].pivot_table(index="layer", columns="part", values="bytes", aggfunc="sum", fill_value=0)
    layers = layers.reindex(columns=PARTS, fill_value=0).assign(peak=layers.sum(axis=1))
    most = (held["bytes"].groupby(held["layer"]).cumsum()).groupby(held["layer"]).max().rename("most")
    return Report(
        peak=int(timeline["peak"][top]),
        parts={part: int(timeline[part][top]) for part in PARTS},
        phases=phases.drop(index="", errors="ignore"),
        layers=layers.join(most, how="outer").fillna(0).astype(np.int64),
        timeline=timeline,
    )


@contextlib.contextmanager
def fake_tensors():
    """Tensors made within have shapes but no data. ``network.to(...)`` exchanges parameters, which torch refuses for fake ones as
    long as it remembers them itself: here they get the new one's storage.
    """

    def exchange(old, new):
        old.data = new.data

    with (
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(torch.utils, "swap_tensors", exchange),
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by deepcopy, of parameters
        yield


def account(build, fake=True):
    """The Report of the second step of the Training that ``build()`` makes: from then on optimisers have their state.

    Everything that ``build`` makes and the step computes is fake: nothing is allocated and no value means anything; a number
    read from a tensor is 0 (an index), 1.0 or True. ``fake`` False does the same with real tensors. Modules that ``build``
    needs should be imported before, or their constants are fake, too. Raises ValueError where the step's course depends on
    values in another way.
    """
    with fake_tensors() if fake else contextlib.nullcontext(), frozen_garbage(), Account() as ledger:
        training = build()
        training.step()
        training.declare(ledger)
        ledger.start()
        before = ledger.total()
        training.step()
        training.declare(ledger)
        result, kept = report(ledger.events), ledger.total() - before
        del training
        ledger.parameters.clear()
        gc.collect()
        return replace(result, kept=kept, leaked=ledger.total())


@contextlib.contextmanager
def frozen_garbage():
    """Within, the garbage collector passes over all objects from before: looking at them again takes longer than a small step."""
    if gc.get_freeze_count():  # somebody else's, who will undo it
        yield
        return
    gc.collect(1)  # what died lately is not kept; for what died long ago all objects would be looked at
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measured(build):
    """What a GPU says of the second step of the Training that ``build()`` makes, in bytes: "allocated" by tensors and workspaces
    at most, "reserved" by the allocator for them, and "driver": all that is in use on the card, its context and others included.
    """
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # they would count in a process's first call alone
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with torch.device("cuda"):
        training = build()
        training.step()
        torch.cuda.reset_peak_memory_stats()
        training.step()
    free, total = torch.cuda.mem_get_info()
    allocated, reserved = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()
    return {"allocated": allocated, "reserved": reserved, "driver": total - free}


# -- planner -------------------------------------------------------------------------------------------------------------------

CARDS = (4, 8, 12, 16, 24, 80)  # GB
CONTEXT, SLACK = (
    1.0 * GIB,
    1.15,
)  # assumed: the GPU's context and libraries; workspaces and gaps in the allocator, as a factor
PRECISIONS = ("fp32", "bf16 autocast", "16-bit")
NAMES = ("exp", "log", "log1p", "pow", "rsqrt", "reciprocal", "softmax", "log_softmax", "logsumexp", "cumsum", "cumprod")
FP32_ON_GPU = {F.interpolate, F.group_norm, F.layer_norm, F.softplus, F.softmax, F.log_softmax, F.cosine_similarity}
FP32_ON_GPU |= {torch.Tensor.__pow__, torch.Tensor.__rpow__, torch.Tensor.__rdiv__}
FP32_ON_GPU |= {getattr(place, name) for place in (torch, torch.Tensor) for name in NAMES}


@dataclass(frozen=True)
class Setting:
    """What can be turned: edge of the volume in voxels (None: that of the samples given), volumes in a batch, precision (one of
    ``PRECISIONS``), whether blocks are computed again in the backward pass instead of stored, and the share of the slices that is
    trained on (None: the network's own).
    """

    size: int | None
    batch: int = 1
    precision: str = "fp32"
    checkpointing: bool = False
    sub_volume: float | None = None

    def __str__(self):
        extras = [f"sub-volume {self.sub_volume:g}"] if self.sub_volume else []
        extras += ["checkpointing"] if self.checkpointing else []
        extras += [] if self.size else ["volumes as they are"]
        return ", ".join([*([f"{self.size}^3"] if self.size else []), f"batch {self.batch}", self.precision, *extras])


def plan(build, size, batch=1, precision="fp32", checkpointing=False, sub_volume=None, **task):
    """The Report of one training step; nothing is allocated.

    Args:
        build: returns an nn.Module, or an algorithm as `fit` trains them. It is given ``size``, ``batch`` and ``sub_volume``
            if it has parameters of these names; without ``sub_volume`` the planner cuts the input along its first axis.
        size, batch, precision, checkpointing, sub_volume: see `Setting`.
        task: of an nn.Module, see `supervised`; of an algorithm ``sample``, see `unsupervised`.

    Raises ValueError for an unknown precision, and where checkpointing finds no blocks.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; use one of {PRECISIONS}")
    return account(lambda: training(build, Setting(size, batch, precision, checkpointing, sub_volume), **task))


def training(build, setting, **task):
    """The Training of a network or an algorithm in a setting: with a GPU's precisions and optimiser, and a CPU's operations."""
    asked = inspect.signature(build).parameters
    given = {k: v for k, v in asdict(setting).items() if k in asked and v is not None}
    with default_type(torch.bfloat16 if setting.precision == "16-bit" else torch.float32):
        made = build(**given)
    share = 1.0 if "sub_volume" in given else setting.sub_volume or 1.0
    if isinstance(made, nn.Module):
        result = supervised(made, setting, share, **task)
    elif share != 1 or setting.size and "size" not in given:
        raise ValueError(f"{type(made).__name__} has no setting that would make it {setting}")
    else:
        result = unsupervised(made, setting, task.get("sample"))
    if setting.checkpointing and not sum(map(checkpoint_blocks, result.networks.values())):
        raise ValueError("found no blocks to checkpoint: modules that hold layers, below the network itself")
    for network in result.networks.values():
        set_precision(network, setting.precision)
    for optimiser in result.optimisers.values():
        for group in optimiser.param_groups:
            group["foreach"] = (
                True  # the default on a GPU: all parameters at once, whose temporaries are as large as they are
            )
    return result


def supervised(network, setting, share=1.0, channels=1, loss=F.l1_loss, optimiser=torch.optim.Adam):
    """The Training of a network from volumes (batch, channels, size, size, size) to a target of its output's shape."""
    shape = setting.batch, channels, int(setting.size * share), setting.size, setting.size
    inputs = {"x": torch.rand(shape)}
    adam = optimiser(network.parameters())

    def step():
        adam.zero_grad()
        with phase("forward"):
            out = tensors(network(inputs["x"]))[0]  # deep supervision: the first is the full resolution
            if "y" not in inputs:
                inputs["y"] = torch.rand_like(out)
            value = loss(out, inputs["y"])
        with phase("backward"):
            value.backward()
        del out, value
        with phase("optimiser"):
            adam.step()

    return Training(step, {"": network}, {"": adam}, inputs)


def unsupervised(algorithm, setting, sample=None):
    """The Training of an algorithm as `fit` trains them; each call of its ``update`` is a phase of the Report. Where a training
    has ``phases`` in which other networks learn, a step is one of each.

    ``sample``: one of its data set, whose shapes count; else cubes "x" (1, size, size, size) and a number "label".
    """
    if sample is None:
        sample = {"x": torch.zeros(1, *[setting.size] * 3), "label": torch.zeros((), dtype=torch.long)}
    sample = {key: torch.as_tensor(sample[key]) for key in algorithm.reads}
    batch = {key: torch.zeros(setting.batch, *value.shape, dtype=value.dtype) for key, value in sample.items()}
    update = getattr(algorithm, "update", None)

    def named(names, *args, **kwargs):
        with phase(names[0] if names[0].startswith("E") else names[0][0]):
            return update(names, *args, **kwargs)

    if update is not None:
        algorithm.update = named

    def step():
        for part in getattr(algorithm, "phases", (None,)):
            algorithm.phase = part
            algorithm.step(batch)

    return Training(step, algorithm.networks, algorithm.optimisers, batch)


def hagan(size=256, sub_volume=1 / 8, latent=1024, c=32, classes=0, lean=False, levers=(), checkpoint=False):
    """HA-GAN by the paper's recipe, but with the public implementation's averages in the losses and a running mean of the
    generator's weights, to be planned: ``plan(hagan, 256, batch=2)``.

    ``levers``: parts of the lean form, alone: any of "up-sampling", "activations", "optimiser state".
    """
    with _disable_current_modes():  # a module's constants must not be fake
        from medsynth_lib.models.hagan_lean import fuse_up_sampling, store_less
        from medsynth_lib.training.hagan import HAGAN, PAPER
        from medsynth_lib.training.hagan_lean import SecondMomentAdam

    changes = dict(size=size, latent=latent, c=c, fraction=sub_volume, classes=classes, loss="public", average=0.999, lean=lean)
    algorithm = HAGAN(PAPER | changes | dict(checkpoint=checkpoint))
    for name in algorithm.optimisers:
        network = algorithm.networks[name]
        if "up-sampling" in levers:
            fuse_up_sampling(network)
        if "activations" in levers:
            store_less(network)
        if "optimiser state" in levers:
            algorithm.optimisers[name] = SecondMomentAdam(network.parameters(), 1e-4)
    return algorithm


BASELINES = ("WGAN", "VAE-GAN", "alpha-GAN", "Progressive GAN")


def baseline(name, size=128, latent=None, width=None, widest=None, fused=False):
    """One of ``BASELINES`` at a size, to be planned; None: as `medsynth_lib.training.baselines` has it.

    ``fused``: up-sampling and convolution of the generator in one, as in HA-GAN's lean form.
    """
    with _disable_current_modes():
        from medsynth_lib.models.hagan_lean import fuse_up_sampling
        from medsynth_lib.training.baselines import ALGORITHMS

    given = {k: v for k, v in dict(latent=latent, width=width, widest=widest).items() if v is not None}
    make = ALGORITHMS[name]
    algorithm = make(make.published | given | dict(size=size, learning_rate=1e-4))
    if fused:
        fuse_up_sampling(algorithm.networks["G"])
    return algorithm


@contextlib.contextmanager
def default_type(dtype):
    """New floating-point tensors have this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def set_precision(network, precision):
    """Wrap a forward pass as Fabric does: 16-bit inputs or autocast, as on a GPU, within; single precision to the outside."""
    if precision == "fp32":
        return
    forward = network.forward

    @functools.wraps(forward)
    def wrapped(*args, **kwargs):
        if precision == "16-bit":
            args = cast(args, torch.float32, torch.bfloat16)
        device = next(network.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16 autocast"), AutocastOfGPU():
            return cast(forward(*args, **kwargs), torch.bfloat16, torch.float32)

    network.forward = wrapped


def cast(tree, old, new):
    """Tensors of the one type in nested lists and dictionaries as the other type."""
    return tree_map_only(torch.Tensor, lambda t: t.to(new) if t.dtype is old else t, tree)


class AutocastOfGPU(TorchFunctionMode):
    """Group norm, up-sampling, ... in single precision: so autocast does on a GPU, but not on the CPU, where fake tensors are."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FP32_ON_GPU and torch.is_autocast_enabled("cpu"):
            args = cast(args, torch.bfloat16, torch.float32)
        return func(*args, **kwargs or {})


def checkpoint_blocks(network):
    """Checkpoint the outermost blocks of a network, in place, and return how many there are.

    A block holds layers and is not a mere list of blocks. What holds a module with a parametrisation is none: spectral norm of
    that kind changes its state at every forward pass, and a second one would not repeat the first. Its other parts can be some.
    """
    blocks = [
        child for child in network.children() if list(child.children()) and not parametrize.is_parametrized(child)
    ]
    count = 0
    for block in blocks:
        is_list = type(block) in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        if is_list and any(map(list, map(nn.Module.children, block.children()))):
            count += checkpoint_blocks(block)
        elif any(map(parametrize.is_parametrized, block.modules())):
            count += checkpoint_blocks(block)
        else:
            both = lambda: (contextlib.nullcontext(), AutocastOfGPU())  # noqa: E731 - the second pass is not in `set_precision`'s
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=both)
            count += 1
    return count


def on_a_card(peak):
    """Bytes that a card needs for a step with this accounted peak: an estimate, by `CONTEXT` and `SLACK`."""
    return CONTEXT + SLACK * peak


def largest(build, sizes, batches, cards=CARDS, peaks=(), **setting):
    """The largest setting that fits each card: the largest size, then the largest batch.

    ``peaks``: what is planned already of this network and with this ``setting``, bytes by (size, batch). ``setting`` goes to
    `plan`; `TIGHT` is not regarded. Returns a DataFrame, one row a card in GB (2^30 bytes): "size", "batch", accounted "peak_gib"
    and "card_gib", what the card needs; missing values where nothing fits.
    """
    rows, tried = [], dict(peaks)
    for gb in cards:
        row = {"card": gb}
        for size, batch in sorted(itertools.product(sizes, batches), reverse=True):
            if (size, batch) not in tried:
                tried[size, batch] = plan(build, size, batch, **setting).peak
            if on_a_card(tried[size, batch]) <= gb * GIB:
                peak = tried[size, batch]
                row |= dict(size=size, batch=batch, peak_gib=peak / GIB, card_gib=on_a_card(peak) / GIB)
                break
        rows.append(row)
    return pd.DataFrame(rows, columns=["card", "size", "batch", "peak_gib", "card_gib"]).set_index("card")


# -- advice --------------------------------------------------------------------------------------------------------------------


def is_out_of_memory(error):
    """Whether an exception says that a GPU or the host has no memory left."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text


def advice(error, build, setting, memory, others=(), peaks=(), **task):
    """What to change after an out-of-memory error, one lever at a time, as a text; None for any other error.

    ``memory``: bytes of the card. ``others``: further levers, (name, model-building function). ``peaks``: what is planned
    already of ``build`` and ``task``, bytes by `Setting`. Settings the network cannot take are left out.
    """
    if not is_out_of_memory(error):
        return None
    levers = [replace(setting, batch=setting.batch // 2)] if setting.batch > 1 else []
    levers += [] if setting.checkpointing else [replace(setting, checkpointing=True)]
    levers += [replace(setting, precision="bf16 autocast")] if setting.precision == "fp32" else []
    own = inspect.signature(build).parameters.get("sub_volume")  # the network's own share, which it takes if it is given none
    share = setting.sub_volume or (own.default if own and isinstance(own.default, float | int) else 1.0)
    levers += [replace(setting, sub_volume=share / 2)]
    levers += [replace(setting, size=setting.size // 2)] if setting.size else []
    lines, known = [], dict(peaks)
    for lever, name, make in [*((lever, "", build) for lever in [setting, *levers]), *((setting, *o) for o in others)]:
        with contextlib.suppress(ValueError, RuntimeError):
            peak = known.get(lever) if make is build else None
            needs = on_a_card(peak or plan(make, **asdict(lever), **task).peak)
            name = ", ".join(filter(None, [str(lever), name]))
            verdict = "" if needs > memory else ", fits" if needs <= TIGHT * memory else ", fits, but tightly"
            lines.append(f"  {name}: about {needs / GIB:.1f} GiB{verdict}")
    lines = lines or ["  none: this step cannot be planned, since its course depends on values"]
    return f"Out of memory: the device has {memory / GIB:.1f} GiB. Estimated needs:\n" + "\n".join(lines)


# -- command line --------------------------------------------------------------------------------------------------------------


def find(name, arguments):
    """The model-building function of a name: "HA-GAN", a baseline, package.module:function, or a class of monai.networks.nets."""
    plain = {known.upper().replace("-", "").replace(" ", ""): known for known in ("HA-GAN", *BASELINES)}
    known = plain.get(name.upper().replace("-", "").replace(" ", ""))
    if known == "HA-GAN":
        return partial_of(hagan, arguments)
    if known:
        return partial_of(baseline, dict(name=known) | arguments)
    if ":" in name:
        module, function = name.split(":")
        return partial_of(getattr(importlib.import_module(module), function), arguments)
    nets = importlib.import_module("monai.networks.nets")
    if not hasattr(nets, name):
        raise ValueError(f"{name!r} is neither HA-GAN nor {', '.join(BASELINES)}, nor package.module:function, nor a network of "
                         "monai.networks.nets")
    usual = {"spatial_dims": 3, "in_channels": 1, "out_channels": 1}
    known = inspect.signature(getattr(nets, name)).parameters
    return partial_of(getattr(nets, name), {k: v for k, v in usual.items() if k in known} | arguments)


def partial_of(function, arguments):
    """The function with these arguments fixed, and out of sight of the planner."""
    unknown = set(arguments) - set(inspect.signature(function).parameters)
    if unknown:
        raise ValueError(f"{function.__name__} takes no {', '.join(sorted(unknown))}")
    asked = {k: v for k, v in inspect.signature(function).parameters.items() if k not in arguments}

    def build(**given):
        return function(**arguments, **given)

    build.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in asked.values()])
    return build


def key_value(text):
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def main(arguments=None):
    """The command line; returns 0, or 2 for a request that makes no sense."""
    parser = argparse.ArgumentParser("python -m medsynth_lib.profiling.memory", description=__doc__.split("\n")[0])
    parser.add_argument("network", help="HA-GAN, a baseline, a class of monai.networks.nets, or package.module:function")
    parser.add_argument("arguments", nargs="*", type=key_value, help="of the network: init_filters=16 lean=True ...")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[128], help="edge of the volume in voxels; several: the largest"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="volumes in a batch; several: the largest")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--checkpointing", action="store_true", help="compute blocks again instead of storing them")
    parser.add_argument("--sub-volume", type=float, help="share of the slices that is trained on, e.g. 0.125")
    parser.add_argument("--channels", type=int, default=1, help="of the input")
    parser.add_argument("--layers", type=int, default=0, help="show this many layers that hold most at the peak")
    options = parser.parse_args(arguments)
    setting = {k: getattr(options, k) for k in ("precision", "checkpointing", "sub_volume")}
    try:
        build = find(options.network, dict(options.arguments))
        show(build, options, setting | dict(channels=options.channels))
    except (ValueError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def show(build, options, setting):
    """Print the plan of the largest setting asked for, then what fits the cards."""
    top = max(options.size), max(options.batch)
    result = plan(build, *top, **setting)
    print(f"{options.network}, {top[0]}^3, batch {top[1]}: {result}")
    print(
        f"on a card about {on_a_card(result.peak) / GIB:.1f} GiB (assumed: 1 GiB for context, 15 % for workspaces and gaps)"
    )
    print((result.phases / MIB).round(0).astype(int).to_string())
    if options.layers:
        print((result.layers.nlargest(options.layers, "peak") / MIB).round(1).to_string())
    print("largest setting that fits a card of so many GB:")
    print(largest(build, options.size, options.batch, peaks={top: result.peak}, **setting).round(2).to_string(na_rep="nothing"))


if __name__ == "__main__":
    from medsynth_lib.profiling import memory  # the module whose `phase` a planned training calls; this one is a copy

    sys.exit(memory.main())
