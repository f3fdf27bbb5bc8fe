"""HA-GAN's networks in less time and memory, with the same mathematics: each lever beside the plain form that it equals.

1. Up-sampling: nearest neighbour x 2 followed by a 3-tap convolution [a, b, c] is one transposed convolution of stride 2 with
   the taps [c, b + c, a + b, a] along each axis. The up-sampled tensor, eight times the size, is never built, and every output
   needs 8 products of the 27 instead of all.
2. Stored activations: of [convolution, GroupNorm, ReLU] only the convolution's output is kept for the backward pass; the next
   layer's input is computed from it once more. A convolution whose weights do not learn keeps no input at all.
3. LeakyReLU writes over its input: its output tells the sign as well.

Equal to rounding (tests/test_hagan_lean.py). Parameters and buffers keep their names.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

TAPS = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # [a, b, c] to [c, b + c, a + b, a]
EXPAND = torch.kron(torch.kron(TAPS, TAPS), TAPS)  # 27 taps in 3D to 64
SMALLEST = 8  # voxels of an input along an axis: below that the plain form is faster


class NormReLU(nn.GroupNorm):
    """GroupNorm and ReLU, which keep their input alone; the output carries what makes it again, for the layer behind."""

    def forward(self, y):
        settings = self.weight, self.bias, self.num_groups, self.eps
        if not torch.is_grad_enabled():
            return norm_relu(y, *settings)[0].to(y.dtype)
        made = {}  # the output, while a backward pass has it
        x = NormReLUFunction.apply(y, *settings, made)
        x.source = (y.detach(), *settings, made)
        return x


class NormReLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, weight, bias, groups, eps, made):
        ctx.save_for_backward(y, weight, bias)
        ctx.settings, ctx.made = (groups, eps), made
        return norm_relu(y, weight, bias, groups, eps)[0].to(y.dtype)  # half precision: as autocast would have it

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, weight, bias = ctx.saved_tensors
        groups, eps = ctx.settings
        x, mean, scale = ctx.made.pop("x", None) or norm_relu(y, weight, bias, groups, eps)
        needs, channels, voxels = list(ctx.needs_input_grad[:3]), y.shape[1] // groups, y[0, 0].numel()
        sums = [torch.zeros_like(weight) if needed else None for needed in needs[1:]]
        for i, j in np.ndindex(len(y), groups):  # one at a time: what is made on the way is small
            s = slice(j * channels, (j + 1) * channels)
            part = x[i : i + 1, s]  # the gradient takes the place of the output, whose sign is ReLU's derivative
            one = part.sign_().mul_(grad[i : i + 1, s]), y[i : i + 1, s].to(weight.dtype)
            statistics = mean[i : i + 1, j : j + 1], scale[i : i + 1, j : j + 1]
            size = 1, channels, voxels, 1
            y_grad, *others = torch.ops.aten.native_group_norm_backward(*one, *statistics, weight[s], *size, needs)
            part.copy_(y_grad)
            for total, other in zip(sums, others, strict=True):
                if total is not None:
                    total[s] += other
        return x.to(y.dtype), *sums, None, None, None


def norm_relu(y, weight, bias, groups, eps):
    """ReLU(GroupNorm(y)) in the precision of the weights, and the mean and 1 / deviation of each group."""
    b, c = y.shape[:2]
    x, mean, scale = torch.native_group_norm(y.to(weight.dtype), weight, bias, b, c, y[0, 0].numel(), groups, eps)
    return x.relu_(), mean, scale


class Conv3d(nn.Conv3d):
    """A convolution that keeps its input only where its weights learn, and then in the shortest form."""

    def forward(self, x):
        return convolve(x, self.weight, self.bias, self.stride, self.padding)


class UpConv3d(nn.Conv3d):
    """nearest x 2, then conv3, with the same parameters, as one transposed convolution."""

    def forward(self, x):
        if x.shape[-1] < SMALLEST:
            return convolve(F.interpolate(x, scale_factor=2), self.weight, self.bias, (1, 1, 1), (1, 1, 1))
        return convolve(x, self.weight, self.bias, (2, 2, 2), (1, 1, 1), up=True)


def expand(weight):
    """Weights (out, in, 3, 3, 3) of a convolution behind nearest x 2 to those of the transposed one, (in, out, 4, 4, 4)."""
    return (weight.flatten(2) @ EXPAND.to(weight).T).unflatten(2, (4, 4, 4)).transpose(0, 1)


def contract(kernel):
    """The adjoint of `expand`: gradients of its result to gradients of the weights."""
    return (kernel.transpose(0, 1).flatten(2) @ EXPAND.to(kernel)).unflatten(2, (3, 3, 3))


def convolve(x, weight, bias, stride, padding, up=False):
    """A convolution, in autocast's precision where that is on; ``up``: of x up-sampled, stride and padding being those of
    the transposed convolution that equals it.
    """
    source = getattr(x, "source", None)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        source = source if x.dtype == dtype else None
        x = x.to(dtype)
    return ConvolveFunction.apply(x, weight, bias, (stride, padding, (1, 1, 1), up, (0, 0, 0), 1), source)


class ConvolveFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, geometry, source):
        kept, ctx.settings, ctx.made = (x,), (), None
        if source is not None:
            *kept, groups, eps, ctx.made = source
            ctx.settings = groups, eps
        ctx.save_for_backward(weight, *(kept if ctx.needs_input_grad[1] else ()))
        ctx.shape, ctx.geometry = x.shape, geometry
        kernel = expand(weight) if geometry[3] else weight
        return torch.convolution(x, kernel.to(x.dtype), bias.to(x.dtype), *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, *kept = ctx.saved_tensors
        if not kept:
            x = grad.new_empty(1).expand(ctx.shape)  # its shape is all that the gradient of the input needs
        elif ctx.made is None:
            x = kept[0]
        else:
            if "x" not in ctx.made:
                ctx.made["x"] = norm_relu(*kept, *ctx.settings)
            x = ctx.made["x"][0].to(grad.dtype)
        kernel = (expand(weight) if ctx.geometry[3] else weight).to(grad.dtype)
        size, needs = [grad.shape[1]], list(ctx.needs_input_grad[:3])
        x, kernel, bias = torch.ops.aten.convolution_backward(grad, x, kernel, size, *ctx.geometry, needs)
        if kernel is not None:
            kernel = (contract(kernel) if ctx.geometry[3] else kernel).to(weight.dtype)
        return x, kernel, None if bias is None else bias.to(weight.dtype), None, None


class ForkFunction(torch.autograd.Function):
    """Features A for G^L, and some slices of them for G^H: the gradient of the slices is added where it belongs."""

    @staticmethod
    def forward(ctx, a, start, stop):
        ctx.part = slice(start, stop)
        return a.view_as(a), a[:, :, ctx.part].clone()  # a copy: A itself can go

    @staticmethod
    @once_differentiable
    def backward(ctx, a_grad, part_grad):
        a_grad[:, :, ctx.part] += part_grad
        return a_grad, None, None


def fork(a, start, stop):
    """A and A[:, :, start:stop], whose backward pass has one tensor of A's size."""
    whole, part = ForkFunction.apply(a, start, stop)
    if hasattr(a, "source"):
        whole.source = a.source
    return whole, part


def make_lean(network):
    """Replace, in place, layers with their lean forms; names, parameters and buffers stay as they are."""
    for module in network.modules():
        children = list(module.named_children())
        for (name, first), (after, second) in zip(children[:-1], children[1:], strict=True):
            if isinstance(first, nn.Upsample) and type(second) is nn.Conv3d:
                setattr(module, name, nn.Identity())
                second.__class__ = UpConv3d
            elif type(first) is nn.GroupNorm and isinstance(second, nn.ReLU):
                setattr(module, after, nn.Identity())
                first.__class__ = NormReLU
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = Conv3d
        elif isinstance(module, nn.LeakyReLU):
            module.inplace = True
