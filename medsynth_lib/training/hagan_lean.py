"""The lean form of HA-GAN's optimiser and backward pass: same numbers, less memory (equality: tests/test_hagan_lean.py)."""

import math
import weakref

import torch

CHUNK = 2**17  # elements that an update treats at a time on a CPU: they stay in its cache


class SecondMomentAdam(torch.optim.Optimizer):
    """torch.optim.Adam with beta_1 = 0, bit for bit: the first moment is the gradient, so the second alone is kept.

    With ``at_once(True)`` a parameter is updated as soon as its gradient is complete, during the backward pass, and the
    gradient is dropped: there are never more than one layer's. Only the last backward pass of a step may do so, only in
    training by one process (others have gradients to add), and not with a scaled loss.
    """

    def __init__(self, parameters, lr, beta=0.999, eps=1e-8):
        super().__init__(parameters, dict(lr=lr, beta=beta, eps=eps))
        self.now = dict(on=False)
        own = weakref.WeakMethod(self.hook)  # a parameter that held its optimiser would never be freed
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(lambda parameter: own()(parameter) if own() else None)

    def at_once(self, on):
        self.now["on"] = on

    def hook(self, parameter):
        if self.now["on"]:
            self.update(parameter)
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter)

    @torch.no_grad()
    def update(self, parameter):
        """One Adam step of one parameter, in chunks."""
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
