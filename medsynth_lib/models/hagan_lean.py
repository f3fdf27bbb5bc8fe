"""HA-GAN's networks in less time and memory, with the same mathematics: each lever beside the plain form that it equals.

1. Up-sampling: nearest neighbour x 2 followed by a 3-tap convolution [a, b, c] is one transposed convolution of stride 2 with
   the taps [c, b + c, a + b, a] along each axis. The up-sampled tensor, eight times the size, is not built. Every output needs
   8 products instead of 27; where the volume is small, 27 products for 8 outputs. A GPU up-samples small volumes for a moment,
   because one large product is faster there.
2. Stored activations: of [convolution, GroupNorm, ReLU] only the convolution's output is kept for the backward pass. The input
   of the next layer is computed from it once more. A convolution whose weights do not learn keeps no input at all, and a linear
   layer no second copy of its weights.
3. LeakyReLU writes over its input: its output tells the sign as well.

Equal to rounding (tests/training/test_hagan_lean.py). Parameters and buffers keep their names. First derivatives only: a
gradient penalty needs the plain form. In shape comments b is the batch, c and o are channels, (d, h, w) voxels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TAPS = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # [a, b, c] to [c, b + c, a + b, a]
EXPAND = torch.kron(torch.kron(TAPS, TAPS), TAPS)  # 27 taps in 3D to 64
SUM = torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 1]])  # [a, b, c] to [a, a + b + c, c]
SUMS = torch.kron(torch.kron(SUM, SUM), SUM)
PHASE = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]]).view(2, 2, 3)  # [a, b + c], [a + b, c]
PHASES = torch.einsum("aix,bjy,ckz->abcijkxyz", PHASE, PHASE, PHASE).reshape(64, 27)
PRODUCTS_UP_TO, PHASES_FROM = 4, 32  # voxels of an input along an axis: which form is fastest on a CPU
PLAIN_UP_TO, PLAIN_UP_TO_16_BIT = 8, 16  # the same on a GPU (an H200): its matrix units like one large product
SMALL = 2**18  # values of a batch: so few are not worth being cut into volumes and groups


def on_gpu(x: Tensor) -> bool:
    """Tell whether a GPU's forms are the faster ones for a tensor."""
    return x.is_cuda


def like(constant: Tensor, x: Tensor) -> Tensor:
    """Return a constant in the precision and on the device of x, without waiting for a GPU."""
    return constant.to(x, non_blocking=True)


class NormReLU(nn.GroupNorm):
    """GroupNorm and ReLU, which keep their input alone. The output carries what makes it again, for the layer behind."""

    def forward(self, y: Tensor) -> Tensor:
        settings = self.weight, self.bias, self.num_groups, self.eps
        if not torch.is_grad_enabled():
            return norm_relu(y, *settings)[0].to(y.dtype)
        made = {}  # the output, while a backward pass has it
        x, mean, scale = NormReLUFunction.apply(y, *settings, made)
        x.source = (y.detach(), self.weight, self.bias, mean, scale, self.num_groups, self.eps, made)
        return x


class NormReLUFunction(torch.autograd.Function):
    """`norm_relu` and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, made: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, mean, scale = norm_relu(y, weight, bias, groups, eps)
        ctx.save_for_backward(y, weight, bias, mean, scale)
        ctx.settings, ctx.made = (groups, eps), made
        ctx.mark_non_differentiable(mean, scale)
        return x.to(y.dtype), mean, scale  # half precision: as autocast would have it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, weight, bias, *statistics = ctx.saved_tensors
        groups, eps = ctx.settings
        x, mean, scale = ctx.made.pop("x", None) or norm_relu(y, weight, bias, groups, eps, statistics)
        gradients = in_few_steps if on_gpu(y) else by_groups
        x, *sums = gradients(grad, x, y, weight, mean, scale, ctx.settings[0], list(ctx.needs_input_grad[:3]))
        return x.to(y.dtype), *sums, None, None, None


def norm_relu(
    y: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, statistics: list[Tensor] | tuple | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ReLU(GroupNorm(y)) in the precision of the weights.

    On a GPU it comes out in y's precision, and nothing larger is made on the way except the statistics. Torch's own group norm
    sums up a group in one block of threads there, which leaves most of the chip idle where volumes are large and few.

    Args:
        y: (b, c, d, h, w).
        statistics: mean and 1 / deviation, where they are known; a GPU does not sum them up again.

    Returns: the output (b, c, d, h, w), mean and 1 / deviation of each group (b, groups).
    """
    b, c = y.shape[:2]
    if not on_gpu(y):
        x, mean, scale = torch.native_group_norm(y.to(weight.dtype), weight, bias, b, c, y[0, 0].numel(), groups, eps)
        return x.relu_(), mean, scale
    mean, scale = statistics or group_statistics(y.to(weight.dtype), groups, eps)
    factor = weight * scale.repeat_interleave(c // groups, 1)
    shift = bias - factor * mean.repeat_interleave(c // groups, 1)
    return torch.addcmul(volumes(shift), y, volumes(factor), out=torch.empty_like(y)).relu_(), mean, scale


def group_statistics(y: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / deviation of each group, (b, groups)."""
    variance, mean = torch.var_mean(y.unflatten(1, (groups, -1)), (2, 3, 4, 5), correction=0)
    return mean, (variance + eps).rsqrt()


def volumes(per_channel: Tensor) -> Tensor:
    """View (b, c) as (b, c, 1, 1, 1)."""
    return per_channel[..., None, None, None]


def by_groups(
    grad: Tensor, x: Tensor, y: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, groups: int, needs: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the gradients of `norm_relu`, one group of one volume at a time.

    So little is made on the way.

    Where all is little anyway, all at once. A volume at once where its layout (channels_last_3d) scatters a group.

    Args:
        grad: of the output x (b, c, d, h, w), whose place the gradient of y takes.
        mean, scale: statistics, (b, groups).
        needs: which gradients are wanted: of y, weight and bias.

    Returns: gradients of y, weight and bias.
    """
    voxels = y[0, 0].numel()
    sums = [torch.zeros_like(weight) if needed else None for needed in needs[1:]]
    small = y.numel() <= SMALL
    n = len(y) if small else 1  # volumes at once
    at_once = 1 if y.is_contiguous() and not small else groups
    channels = y.shape[1] // groups * at_once
    for i, j in np.ndindex(len(y) // n, groups // at_once):
        v, s, g = (slice(k * length, (k + 1) * length) for k, length in ((i, n), (j, channels), (j, at_once)))
        part = x[v, s]  # the gradient takes the place of the output, whose sign is ReLU's derivative
        one = part.sign_().mul_(grad[v, s]), y[v, s].to(weight.dtype)
        statistics = mean[v, g].contiguous(), scale[v, g].contiguous()
        size = n, channels, voxels, at_once
        y_grad, *others = torch.ops.aten.native_group_norm_backward(*one, *statistics, weight[s], *size, needs)
        part.copy_(y_grad)
        for total, other in zip(sums, others, strict=True):
            if total is not None:
                total[s] += other
    return x, *sums


def in_few_steps(
    grad: Tensor, x: Tensor, y: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, groups: int, needs: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    r"""Compute the gradients of `norm_relu` in few large steps, for a GPU.

    Arguments and result are those of `by_groups`.

    With g = grad where x > 0, $\hat y$ = (y - mean) scale and n values in a group,

        dL/dy = scale (w g - (sum of w g) / n - $\hat y$ (sum of w g $\hat y$) / n):

    a factor on g, one on y, and a constant.
    """
    g = x.sign_().mul_(grad)
    per_group, single = y.shape[1] // groups, weight.dtype
    mean, scale = (v.repeat_interleave(per_group, 1) for v in (mean, scale))
    total = g.sum((2, 3, 4), dtype=single)
    product = [a.to(single, copy=True).mul_(b).sum((1, 2, 3)) for a, b in zip(g, y, strict=True)]  # volume by volume
    product = (torch.stack(product) - mean * total) * scale  # sum of g times normalised y, per channel
    n = per_group * y[0, 0].numel()
    along, across = (
        (weight * v).unflatten(1, (groups, -1)).sum(2).repeat_interleave(per_group, 1) / n for v in (product, total)
    )
    on_y = -scale.square() * along
    on_g, on_y, constant = (volumes(v) for v in (scale * weight, on_y, -scale * across - on_y * mean))
    if g.dtype == single:
        g.mul_(on_g).addcmul_(y, on_y).add_(constant)
    else:  # in half precision one volume after the other is made in single precision
        for g_1, y_1, on_g_1, on_y_1, constant_1 in zip(g, y, on_g, on_y, constant, strict=True):
            g_1.copy_((g_1 * on_g_1).addcmul_(y_1, on_y_1).add_(constant_1))
    return g, *(v.sum(0) if needed else None for v, needed in zip((product, total), needs[1:], strict=True))


class Conv3d(nn.Conv3d):
    """A convolution that keeps its input only where its weights learn, and then in the shortest form."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, Direct(self.stride, self.padding))


class UpConv3d(nn.Conv3d):
    """nearest x 2, then conv3, with the same parameters; the up-sampled tensor is not kept."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.form(x))

    def form(self, x: Tensor) -> "Direct | Products":
        """Choose the fastest form for an input of this size on its device."""
        size, strides = x.shape[-1], ((2, 2, 2), (1, 1, 1))
        if on_gpu(x):
            half = x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled("cuda")
            if size <= (PLAIN_UP_TO_16_BIT if half else PLAIN_UP_TO):
                return Plain((1, 1, 1), (1, 1, 1))
            return Phases(*strides) if len(self.weight) == 1 else Transposed(*strides)
        if size <= PRODUCTS_UP_TO:
            return Products()
        return Phases(*strides) if size >= PHASES_FROM else Transposed(*strides)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, form: "Direct | Products") -> Tensor:
    """Convolve in one of the forms below, in autocast's precision where that is on."""
    source, before, x = getattr(x, "source", None), x.dtype, as_in_autocast(x)
    return ConvolveFunction.apply(x, weight, bias, form, source if x.dtype == before else None)


def as_in_autocast(x: Tensor) -> Tensor:
    """Return x in autocast's precision where that is on."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return x.to(torch.get_autocast_dtype(device)) if on and x.dtype != torch.float64 else x


class ConvolveFunction(torch.autograd.Function):
    """A convolution in one form, whose input is made again from a `NormReLU`'s input where there is one (``source``)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, form: "Plain", source: Any) -> Tensor:
        kept, ctx.settings, ctx.made = (x,), (), None
        if source is not None:
            *kept, groups, eps, ctx.made = source  # y, weight, bias, mean, scale
            ctx.settings = groups, eps
        ctx.save_for_backward(weight, *(kept if ctx.needs_input_grad[1] else ()))
        ctx.shape, ctx.form = x.shape, form
        return form.forward(x, weight, bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        if not kept:
            x = grad.new_empty(1).expand(ctx.shape)  # its shape is all that the gradient of the input needs
        elif ctx.made is None:
            x = kept[0]
        else:
            if "x" not in ctx.made:
                y, norm_weight, norm_bias, mean, scale = kept
                groups, eps = ctx.settings
                ctx.made["x"] = norm_relu(y, norm_weight, norm_bias, groups, eps, (mean, scale))
            x = ctx.made["x"][0].to(grad.dtype)
        x_grad, *others = ctx.form.backward(grad, x, weight, list(ctx.needs_input_grad[:3]))
        return x_grad, *(None if g is None else g.to(weight.dtype) for g in others), None, None


class Linear(nn.Linear):
    """A linear layer that keeps its weights once, without a copy in autocast's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return LinearFunction.apply(as_in_autocast(x), self.weight, self.bias)


class LinearFunction(torch.autograd.Function):
    """x W^T + b and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ weight.to(grad.dtype) if for_x else None,
            (rows.T @ x.reshape(-1, x.shape[-1])).to(weight.dtype) if for_weight else None,
            rows.sum(0).to(weight.dtype) if for_bias else None,
        )


class Direct:
    """A convolution as it is. Each form computes an output and, from the output's gradient, the gradients of its inputs."""

    transposed = False

    def __init__(self, stride: tuple[int, ...], padding: tuple[int, ...]):
        self.geometry = stride, padding, (1, 1, 1), self.transposed, (0, 0, 0), 1

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve x (b, c, d, h, w) with weights (o, c, k, k, k)."""
        return torch.convolution(x, weight.to(x.dtype), bias, *self.geometry)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias, each where it is needed."""
        weight = weight.to(grad.dtype)
        return torch.ops.aten.convolution_backward(grad, x, weight, [grad.shape[1]], *self.geometry, needs)


class Plain(Direct):
    """nearest x 2 and conv3 as they are; the up-sampled tensor is not kept."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # it would make the largest tensor in single precision
            x = F.interpolate(x, scale_factor=2)
        return super().forward(x, weight, bias)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor | None, ...]:
        x_grad, *others = super().backward(grad, F.interpolate(x, scale_factor=2), weight, needs)
        return None if x_grad is None else 8 * F.avg_pool3d(x_grad, 2), *others


class Transposed(Direct):
    """nearest x 2 and conv3 as a transposed convolution."""

    transposed = True

    def expand(self, weight: Tensor) -> Tensor:
        """Turn weights (o, c, 3, 3, 3) into (c, o, 4, 4, 4)."""
        return (weight.flatten(2) @ like(EXPAND, weight).T).unflatten(2, (4, 4, 4)).transpose(0, 1)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return super().forward(x, self.expand(weight), bias)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor | None, ...]:
        x, kernel, bias = super().backward(grad, x, self.expand(weight), needs)
        if kernel is not None:
            kernel = (kernel.transpose(0, 1).flatten(2) @ like(EXPAND, kernel)).unflatten(2, (3, 3, 3))
        return x, kernel, bias


class Phases(Transposed):
    """The same, forward as one convolution with 2 taps an axis, whose channels hold the 8 phases of the output.

    Every voxel of x sees [a, b + c] of what is before and itself, [a + b, c] of itself and what is after. This is faster where x
    is large, or if a single channel comes out.
    """

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernel = (weight.flatten(2) @ like(PHASES, weight).T).unflatten(2, (8, 2, 2, 2)).transpose(1, 2).flatten(0, 1)
        phases = torch.conv3d(x, kernel.to(x.dtype), bias.repeat_interleave(8), padding=1).unflatten(1, (-1, 2, 2, 2))
        (b, _, d, h, w), channels = x.shape, len(weight)
        y = x.new_empty(b, channels, d, 2, h, 2, w, 2)
        for i, j, k in np.ndindex(2, 2, 2):
            y[:, :, :, i, :, j, :, k] = phases[:, :, i, j, k, i : i + d, j : j + h, k : k + w]
        return y.view(b, channels, 2 * d, 2 * h, 2 * w)


class Products:
    """nearest x 2 and conv3 in three products for two outputs.

    With s = a + b + c, along each axis

        y[2i]     = a (x[i-1] - x[i]) + s x[i]
        y[2i + 1] = c (x[i+1] - x[i]) + s x[i]

    so 27 products for 8 outputs in 3D instead of 64. The rest are additions, which only pay where x is small.
    """

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve x (b, c, d, h, w) with weights (o, c, 3, 3, 3)."""
        v = differences(x)
        products = v.flatten(3, 6).flatten(0, 2) @ self.taps(weight.to(x.dtype))  # (27, b d h w, o)
        return pairs(products.view(*v.shape[:-1], -1)) + bias.view(-1, 1, 1, 1)

    def taps(self, weight: Tensor) -> Tensor:
        """Turn weights (o, c, 3, 3, 3) into (27, c, o)."""
        return (weight.flatten(2) @ SUMS.to(weight).T).permute(2, 1, 0)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias, each where it is needed."""
        g, taps_grad = pairs_adjoint(grad), None
        sizes, g = g.shape[:-1], g.flatten(3, 6).flatten(0, 2)
        if needs[1]:
            taps_grad = differences(x).flatten(3, 6).flatten(0, 2).mT @ g
            taps_grad = (taps_grad.permute(2, 1, 0) @ SUMS.to(g)).unflatten(2, (3, 3, 3))
        if needs[0]:
            x = differences_adjoint((g @ self.taps(weight.to(g.dtype)).mT).view(*sizes, -1))
        return x if needs[0] else None, taps_grad, grad.sum((0, 2, 3, 4)) if needs[2] else None


def shifted(x: Tensor, by: int, axis: int) -> Tensor:
    """Move x by one (1 or -1) along an axis; zeros come in."""
    x = x.roll(by, axis)
    x.select(axis, 0 if by > 0 else -1).zero_()
    return x


def differences(x: Tensor) -> Tensor:
    """Turn x (b, c, d, h, w) into differences (3, 3, 3, b, d, h, w, c).

    Along each axis these are before - x, x, and after - x.
    """
    x = x.movedim(1, -1)
    for axis in (-2, -3, -4):
        x = torch.stack([shifted(x, 1, axis) - x, x, shifted(x, -1, axis) - x])
    return x


def differences_adjoint(g: Tensor) -> Tensor:
    """Apply the transpose of `differences`."""
    for axis in (-4, -3, -2):
        before, same, after = g
        g = same - before - after + shifted(before, -1, axis) + shifted(after, 1, axis)
    return g.movedim(-1, 1).contiguous()


def pairs(y: Tensor) -> Tensor:
    """Add products (3, 3, 3, b, d, h, w, o) to volumes (b, o, 2d, 2h, 2w).

    The first two are for even voxels, the last two for odd ones.
    """
    for _ in range(3):
        y = torch.stack([y[0] + y[1], y[1] + y[2]], 2)  # the next axis comes first
    return y.permute(3, 7, 4, 0, 5, 1, 6, 2).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def pairs_adjoint(g: Tensor) -> Tensor:
    """Apply the transpose of `pairs`."""
    for axis in (4, 3, 2):
        g = g.unflatten(axis, (-1, 2))
    g = g.permute(3, 5, 7, 0, 2, 4, 6, 1)
    for _ in range(3):
        g = torch.stack([g[0], g[0] + g[1], g[1]], 2)
    return g


class ForkFunction(torch.autograd.Function):
    """Features A for G^L and some slices of them for G^H; the gradient of the slices is added where it belongs."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        ctx.part = slice(start, stop)
        return a.view_as(a), a[:, :, ctx.part].clone()  # a copy: A itself can go

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a_grad: Tensor, part_grad: Tensor) -> tuple[Tensor, None, None]:
        a_grad[:, :, ctx.part] += part_grad
        return a_grad, None, None


def fork(a: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return A and A[:, :, start:stop], whose backward pass has one tensor of A's size."""
    whole, part = ForkFunction.apply(a, start, stop)
    if hasattr(a, "source"):
        whole.source = a.source
    return whole, part


def make_lean(network: nn.Module) -> None:
    """Replace layers with their lean forms, in place.

    Names, parameters and buffers stay as they are.
    """
    fuse_up_sampling(network)
    store_less(network)


def neighbours(network: nn.Module) -> Iterator[tuple[nn.Module, str, Any, str, Any]]:
    """Yield pairs of modules in a row.

    Each is (parent, name of the first, first, name of the second, second).
    """
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (name, first), (after, second) in zip(children[:-1], children[1:], strict=True):
            yield parent, name, first, after, second


def ordinary(module: nn.Module) -> bool:
    """Tell whether the lean forms equal a module.

    They equal a Linear or Conv3d with a bias; not grouped, not dilated, zeros around.
    """
    if type(module) is nn.Linear:
        return module.bias is not None
    usual = type(module) is nn.Conv3d and module.bias is not None and not isinstance(module.padding, str)
    return usual and (module.groups, module.dilation, module.padding_mode) == (1, (1, 1, 1), "zeros")


def fuse_up_sampling(network: nn.Module) -> None:
    """Apply lever 1, in place, wherever a 3-tap convolution follows on nearest x 2."""
    three_taps = (3, 3, 3), (1, 1, 1), (1, 1, 1)  # kernel, stride, padding
    for parent, name, first, _, second in neighbours(network):
        doubles = isinstance(first, nn.Upsample) and (first.mode, first.scale_factor) == ("nearest", 2)
        if doubles and ordinary(second) and (second.kernel_size, second.stride, second.padding) == three_taps:
            setattr(parent, name, nn.Identity())
            second.__class__ = UpConv3d


def store_less(network: nn.Module) -> None:
    """Apply levers 2 and 3, in place."""
    for parent, _, first, after, second in neighbours(network):
        if type(first) is nn.GroupNorm and isinstance(second, nn.ReLU):
            setattr(parent, after, nn.Identity())
            first.__class__ = NormReLU
    for module in network.modules():
        if ordinary(module):
            module.__class__ = {nn.Conv3d: Conv3d, nn.Linear: Linear}[type(module)]
        elif isinstance(module, nn.LeakyReLU):
            module.inplace = True
