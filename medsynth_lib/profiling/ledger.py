"""What a training step keeps in memory: a ledger of all tensor storages, which allocates nothing.

`account` runs the real step on fake tensors. A dispatch mode sees every operation below autograd. It follows each storage
by weak reference, from the operation that made the storage to the moment when nobody holds it any more. It cannot see what
kernels use inside (workspaces), what an allocator rounds up, and the context of a GPU: see `planner.on_a_card`.
"""

import contextlib
import functools
import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from medsynth_lib.profiling import phases
from medsynth_lib.profiling.fake import call, fake_tensors, frozen_garbage, tensors
from medsynth_lib.profiling.report import OPTIMISER, Report, make_report

FORWARD, AGAIN, BACKWARD = range(3)


class Storage:
    """One block of memory, however many views share it."""

    def __init__(self, layer: str, moment: int):
        self.size, self.layer, self.moment, self.part = 0, layer, moment, "temporaries"


class Account(TorchDispatchMode):
    """A ledger of all tensor storages that operations make or read while it is active, real or fake.

    `events` lists (bytes, Storage, Phase): positive where a storage appears, negative where it ends. A storage that one
    moment of a step makes and a later one reads is an activation (see `moment`), whoever kept it: autograd, a custom
    Function or a checkpoint. `own` names the other parts. A storage without a name is temporary.
    """

    def __init__(self):
        super().__init__()
        self.live, self.events, self.parameters, self.gradients = {}, [], {}, {}
        self.layers, self.names, self.nodes = [""], weakref.WeakKeyDictionary(), {}
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
        return super().__enter__()

    def __exit__(self, *error):
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
        out = call(func, args, kwargs or {})
        for tensor in tensors(out):
            self.see(tensor, layer, now)
        return out

    def layer(self, now: int) -> str:
        """Name the module whose forward pass runs.

        In a backward pass it is the module that made the autograd node.

        Autograd numbers its nodes as they are made, just before their operation gets here. So the first operation that
        comes with a number belongs to the module that made the node.
        """
        if now < BACKWARD:
            self.nodes.setdefault(torch.autograd._get_sequence_nr() - 1, self.layers[-1])
            return self.layers[-1]
        node = torch._C._current_autograd_node()
        return self.nodes.get(node._sequence_nr(), "") if node is not None else self.layers[-1]

    def see(self, tensor: torch.Tensor, layer: str = "", now: int = FORWARD) -> Storage:
        """Find the Storage of a tensor; enter it if it is new, correct its size if it was resized."""
        block = tensor.untyped_storage()
        key, size = block._cdata, block.nbytes()
        if key not in self.live:
            self.live[key] = Storage(layer, now), weakref.ref(block, lambda _: self.end(key))
        storage = self.live[key][0]
        if size != storage.size:
            self.enter(size - storage.size, storage)
        return storage

    def enter(self, change: int, storage: Storage) -> None:
        """Write down that a storage grew by so many bytes."""
        storage.size += change
        self.events.append((change, storage, phases.current()))

    def end(self, key: int) -> None:
        """Write down that a storage is gone."""
        storage = self.live.pop(key)[0]
        self.enter(-storage.size, storage)

    def find_gradients(self, anyway: bool = False) -> None:
        """Find the new gradients of all parameters.

        Autograd makes a gradient as a temporary and hands it to its parameter without an operation. So the ledger looks
        in a backward pass and at the operation after it. At every operation this would take a sixth of the time.
        """
        before, self.backward = self.backward, moment() != FORWARD
        for name, parameter in self.parameters.items() if before or self.backward or anyway else ():
            gradient = parameter.grad
            seen = self.gradients.get(name)
            if gradient is not None and (seen is None or seen() is not gradient):
                self.gradients[name] = weakref.ref(gradient)
                self.own("gradients", {name: gradient})

    def own(self, part: str, named: Mapping[str, torch.Tensor]) -> None:
        """Say that these tensors are parameters, inputs or another of `PARTS`."""
        for name, value in named.items():
            storage = self.see(value)
            storage.part, storage.layer = part, name.rpartition(".")[0]

    def start(self) -> None:
        """Forget the past: the events begin with what is alive now."""
        gc.collect()
        self.events = [(storage.size, storage, phases.Phase()) for storage, _ in self.live.values()]

    def total(self) -> int:
        """Count the bytes that are alive now."""
        return sum(storage.size for storage, _ in self.live.values())


def moment() -> int:
    """Tell where a step is: FORWARD, BACKWARD or AGAIN.

    AGAIN is the second forward pass of a block under checkpointing.

    A checkpoint computes its block again within a backward pass, but with gradients.
    """
    if torch._C._current_graph_task_id() == -1:
        return FORWARD
    return AGAIN if torch.is_grad_enabled() else BACKWARD


@dataclass
class Training:
    """What the ledger needs of a training."""

    step: Callable[[], object]  # one training step
    networks: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Optimizer]
    inputs: Mapping[str, torch.Tensor]  # of a batch

    def declare(self, ledger: Account) -> None:
        """Tell a ledger whose tensors are whose."""
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


def full_name(network: str, path: str) -> str:
    """Join the name of a network and that of its parameter.

    "D^H" and "layers.0.parametrizations.weight.original" become "D^H.layers.0.weight.original".
    """
    return f"{network}.{path}".replace(".parametrizations", "").strip(".")


def account(build: Callable[[], Training], fake: bool = True) -> Report:
    """Account the memory of a training's second step, in which optimisers have their state.

    All that `build` makes and the step computes is fake: nothing is allocated and no value means anything. A number that is
    read from a tensor is 0 (an index), 1.0 or True. Import the modules that `build` needs before, or their constants are
    fake, too.

    Args:
        build: makes the training.
        fake: False runs the same ledger on real tensors.

    Raises: ValueError where the course of the step depends on values in another way.
    """
    with fake_tensors() if fake else contextlib.nullcontext(), frozen_garbage(), Account() as ledger:
        training = build()
        training.step()
        training.declare(ledger)
        ledger.start()
        before = ledger.total()
        training.step()
        training.declare(ledger)
        result, kept = make_report(ledger.events), ledger.total() - before
        del training
        ledger.parameters.clear()
        gc.collect()
        return replace(result, kept=kept, leaked=ledger.total())


def measured(build: Callable[[], Training]) -> dict[str, int]:
    """Measure the memory of a training's second step on the GPU.

    Returns: bytes. "allocated": the most that tensors and workspaces took; "reserved": the most that the allocator held for
        them; "driver": all that is in use on the card, its context and other programs included.
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
