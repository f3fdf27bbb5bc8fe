"""HA-GAN's networks in less time and memory, with the same mathematics: each lever beside the plain form that it equals.

1. Up-sampling: nearest neighbour x 2 followed by a 3-tap convolution [a, b, c] is one transposed convolution of stride 2 with
   the taps [c, b + c, a + b, a] along each axis. The up-sampled tensor, eight times the size, is never built, and every output
   needs 8 products of the 27 instead of all.
2. Stored activations: of [convolution, GroupNorm, ReLU] only the convolution's output is kept for the backward pass; the next
   layer's input is computed from it once more. A convolution whose weights do not learn keeps no input at all.
3. LeakyReLU writes over its input: its output tells the sign as well.

Equal to rounding (tests/test_hagan_lean.py). Parameters and buffers keep their names.
"""

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
        x, mean, scale = ctx.made.pop("x", None) or norm_relu(y, weight, bias, *ctx.settings)
        grad = x.sign_().mul_(grad)  # ReLU's derivative, in the memory of its output
        sizes = *y.shape[:2], y[0, 0].numel(), ctx.settings[0]
        grads = torch.ops.aten.native_group_norm_backward(
            grad, y.to(weight.dtype), mean, scale, weight, *sizes, list(ctx.needs_input_grad[:3])
        )
        return grads[0].to(y.dtype), *grads[1:], None, None, None


def norm_relu(y, weight, bias, groups, eps):
    """ReLU(GroupNorm(y)) in the precision of the weights, and the mean and 1 / deviation of each group."""
    b, c = y.shape[:2]
    x, mean, scale = torch.native_group_norm(y.to(weight.dtype), weight, bias, b, c, y[0, 0].numel(), groups, eps)
    return x.relu_(), mean, scale


class Conv3d(nn.Conv3d):
    """A convolution that keeps its input only where its weights learn, and then in the shortest form."""

    def forward(self, x):
        return convolve(x, self.weight, self.bias, self.stride, self.padding, False)


class UpConv3d(nn.Conv3d):
    """nearest x 2, then conv3, with the same parameters, as one transposed convolution."""

    def forward(self, x):
        if x.shape[-1] < SMALLEST:
            return convolve(F.interpolate(x, scale_factor=2), self.weight, self.bias, (1, 1, 1), (1, 1, 1), False)
        kernel = (self.weight.flatten(2) @ EXPAND.to(self.weight).T).unflatten(2, (4, 4, 4)).transpose(0, 1)
        return convolve(x, kernel, self.bias, (2, 2, 2), (1, 1, 1), True)


def convolve(x, weight, bias, stride, padding, transposed):
    """torch.convolution, in autocast's precision where that is on."""
    device, source = x.device.type, getattr(x, "source", None)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        source = source if x.dtype == dtype else None
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    geometry = stride, padding, (1, 1, 1), transposed, (0, 0, 0), 1
    if not torch.is_grad_enabled():
        return torch.convolution(x, weight, bias, *geometry)
    return ConvolveFunction.apply(x, weight, bias, geometry, source)


class ConvolveFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, geometry, source):
        kept, ctx.settings, ctx.made = (x,), (), None
        if source is not None:
            *kept, groups, eps, ctx.made = source
            ctx.settings = groups, eps
        ctx.save_for_backward(weight, *(kept if ctx.needs_input_grad[1] else ()))
        ctx.shape, ctx.geometry = x.shape, geometry
        return torch.convolution(x, weight, bias, *geometry)

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
            x = ctx.made["x"][0].to(weight.dtype)
        channels = [grad.shape[1]]
        needs = list(ctx.needs_input_grad[:3])
        return *torch.ops.aten.convolution_backward(grad, x, weight, channels, *ctx.geometry, needs), None, None


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
