"""The lean form of HA-GAN: the same mathematics in less time and memory, for the paper's form and every departure.

What it changes, and why:
- Layers store less and up-sample within the convolution (`models.hagan_lean`).
- A step is taken in parts: the backward pass of a term is done before the next term is computed, so its graph can go.
- With beta_1 = 0 Adam needs the second moment alone, and a parameter takes its step as soon as it has its gradient.
- The features A are copied for G^H, so that A itself can go; their gradient exists once.
Losses and weights are those of the plain form to rounding.
"""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medsynth_lib.models.hagan_lean import fork, make_lean
from medsynth_lib.settings import HAGANSettings
from medsynth_lib.training.hagan import BETA_2, Real
from medsynth_lib.training.loop import Run

CHUNK = 2**17  # elements that an update treats at a time on a CPU: they stay in its cache


class SecondMomentAdam(torch.optim.Optimizer):
    """torch.optim.Adam with beta_1 = 0, bit for bit: the first moment is the gradient, so the second alone is kept.

    With ``at_once(True)`` a parameter is updated as soon as its gradient is complete, during the backward pass. Its gradient
    is dropped, so that there is never more than one layer's. Only the last backward pass of a step may do so, only in a
    training by one process (others have gradients to add), and not with a scaled loss.
    """

    def __init__(self, parameters: list, lr: float, beta: float = BETA_2, eps: float = 1e-8) -> None:
        super().__init__(parameters, dict(lr=lr, beta=beta, eps=eps))
        self.now = dict(on=False)
        own = weakref.WeakMethod(self.hook)  # a parameter that held its optimiser would never be freed
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(lambda parameter: own()(parameter) if own() else None)

    def at_once(self, on: bool) -> None:
        """Say whether parameters are updated during the backward passes from now on."""
        self.now["on"] = on

    def hook(self, parameter: nn.Parameter) -> None:
        """Take the step of a parameter whose gradient is complete, where that is asked for."""
        if self.now["on"]:
            self.update(parameter)
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take the step of all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter)

    @torch.no_grad()
    def update(self, parameter: nn.Parameter) -> None:
        """Take one Adam step of one parameter, in chunks."""
        group, state = self.param_groups[0], self.state[parameter]
        if not state:
            state["step"], state["exp_avg_sq"] = 0, torch.zeros_like(parameter)
        state["step"] = int(state["step"]) + 1  # a tensor after a resume
        correction = math.sqrt(1 - group["beta"] ** state["step"])
        # a GPU likes few large steps
        rows = len(parameter) if parameter.is_cuda else max(1, CHUNK // parameter[0].numel())
        for p, g, v in zip(*(t.split(rows) for t in (parameter, parameter.grad, state["exp_avg_sq"])), strict=True):
            v.mul_(group["beta"]).addcmul_(g, g, value=1 - group["beta"])
            p.addcdiv_(g, v.sqrt().div_(correction).add_(group["eps"]), value=-group["lr"])


class Lean:
    """What the lean form changes of `HAGAN` or a departure; name it before them in the bases."""

    def __init__(self, settings: HAGANSettings, *given: object) -> None:
        super().__init__(settings, *given)
        for name in self.optimisers:
            make_lean(self.networks[name])

    def make_optimiser(self, name: str) -> torch.optim.Optimizer:
        """Make Adam for one network, with the second moment alone where beta_1 is 0."""
        if self.settings.beta_1 > 0:
            return super().make_optimiser(name)
        groups = [{"params": list(self.networks[name].parameters()), "rate": self.rate(name)}]
        return SecondMomentAdam(groups, self.settings.learning_rate)

    def common(self, z: Tensor, real: Real) -> tuple[Tensor, Tensor]:
        """Return A = G^A(Z) and a copy of A_r = S^L(A; r)."""
        return fork(self.networks["G^A"](z), real.r // 4, (real.r + self.depth) // 4)

    def update(self, names: tuple[str, ...], run: Run, *terms: Callable[[], Tensor]) -> list[Tensor]:
        """Take one step of these networks on the sum of the terms; the terms share no graph."""
        self.learn_only(names)
        values = []
        for term in terms[:-1]:
            loss = term()
            run.backward(loss)
            values.append(loss.detach())
        loss = terms[-1]()
        with self.steps_at_once(names, run):
            run.backward(loss)
        self.take_step(names)
        return [*values, loss.detach()]

    @contextmanager
    def steps_at_once(self, names: tuple[str, ...], run: Run) -> Iterator[None]:
        """Let parameters step within the backward pass in this block, where they may.

        They may not where other processes have gradients to add, or where the loss is scaled.
        """
        alone = run.processes == 1 and run.precision != "16-mixed"
        optimisers = [optimiser for name, optimiser in self.optimisers.items() if name in names]
        optimisers = [optimiser for optimiser in optimisers if alone and hasattr(optimiser, "at_once")]
        for optimiser in optimisers:
            optimiser.at_once(True)
        try:
            yield
        finally:
            for optimiser in optimisers:
                optimiser.at_once(False)


def recompute(network: nn.Module) -> None:
    """Let a network keep its input alone and run once more in the backward pass, in place.

    At 256^3 this lowers the peak of the plain form a little, for G^L and G^H, and not that of the lean form.
    """
    kind = type(network)

    class Recomputed(kind):
        def __call__(
            self, *inputs: Tensor
        ) -> Tensor:  # around all of the forward pass, also what gives it its precision
            if not torch.is_grad_enabled():
                return kind.__call__(self, *inputs)
            return checkpoint(partial(kind.__call__, self), *inputs, use_reentrant=False, preserve_rng_state=False)

    network.__class__ = Recomputed
