"""HA-GAN (Sun et al., section II; Table I names the parts): a volume of S^3 voxels by way of features of (S/4)^3.

The paper's layer list is in a supplement; this one has the parameter counts of the authors' public models and of Table VIII:
74.75, 78.67, 79.58 and 79.74 million at S = 32, 64, 128 and 256 (a variational E^G has 16.8 million more). One rule gives every
size: features grow from 4^3 to (S/4)^3, and encoders and discriminators drop their outermost levels where S is smaller.
"""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrizations, parametrize

SIZES = (32, 64, 128, 256, 512)
FRACTIONS = (1 / 8, 1 / 4, 1 / 2)  # of the slices in a sub-volume, Table IX


def require_size(size, fraction=1 / 8):
    """Raise ValueError unless the size and the sub-volume's fraction of it are among those of the paper (and 512)."""
    if size not in SIZES:
        raise ValueError(f"volume size {size} is not one of {SIZES}; resize the volumes")
    if fraction not in FRACTIONS:
        raise ValueError(f"sub-volume fraction {fraction} is not one of 1/8, 1/4, 1/2")


def levels(size):
    """Halvings from S/4 to 4 voxels: 1, 2, 3, 4, 5 for the five sizes."""
    return size.bit_length() - 5


def norm(channels):
    return nn.GroupNorm(min(8, channels), channels)


def block(c_in, c_out, up=False, norm=norm):
    """[nearest x 2,] conv3, GroupNorm, ReLU."""
    layers = [nn.Conv3d(c_in, c_out, 3, padding=1), norm(c_out), nn.ReLU()]
    return nn.Sequential(nn.Upsample(scale_factor=2), *layers) if up else nn.Sequential(*layers)


def down(c_in, c_out):
    """Strided conv4, GroupNorm, ReLU."""
    return nn.Sequential(nn.Conv3d(c_in, c_out, 4, stride=2, padding=1), norm(c_out), nn.ReLU())


class Standard(nn.Module):
    """Standard codes z of an encoder's own codes e = mean + root z: with mean 0 and covariance I over people, as N(0, I) has.

    z is e until `settle` has taken mean and root from the drawn codes that `count` was given (a person counts at every visit,
    each time with new noise); the covariance is shrunk a little towards a multiple of I. Codes of other people come out wider
    where few were counted for their length (sd 1.5 for 400 of 256).
    """

    def __init__(self, latent):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("root", torch.eye(latent))  # lower triangular: covariance = root root^T
        for counter, shape in {"people": (), "total": (latent,), "products": (latent, latent)}.items():
            self.register_buffer(counter, torch.zeros(shape, dtype=torch.float64))  # a difference of large numbers

    def forward(self, e):
        return torch.linalg.solve_triangular(self.root, (e.to(self.mean) - self.mean).T, upper=False).T

    def own(self, z):
        with torch.autocast(z.device.type, enabled=False):
            return self.mean + z.to(self.mean) @ self.root.T

    @torch.no_grad()
    def count(self, e):
        e = e.to(self.total)
        self.people += len(e)
        self.total += e.sum(0)
        self.products += e.T @ e

    @torch.no_grad()
    def settle(self):
        mean = self.total / self.people
        self.mean.copy_(mean)
        covariance = self.products / self.people - torch.outer(mean, mean)
        d = len(mean)
        shrinkage = d / (d + 10 * self.people)
        round_one = covariance.trace() / d * torch.eye(d).to(mean)
        self.root.copy_(torch.linalg.cholesky(covariance.lerp(round_one, shrinkage)))
        for counter in (self.people, self.total, self.products):
            counter.zero_()


class Common(nn.Module):
    """G^A: codes (b, latent [+ classes]) to features A, (b, 2c, S/4, S/4, S/4). ``standard``: see `EncoderGround`."""

    def __init__(self, size=256, latent=1024, c=32, classes=0, standard=False):
        super().__init__()
        require_size(size)
        self.first, self.latent = nn.Linear(latent + classes, 16 * c * 4**3), latent
        self.standard = Standard(latent) if standard else None
        ups = levels(size)
        widths = [16 * c] * max(1, ups - 3) + [16 * c, 8 * c, 4 * c, 2 * c]  # one more block at 512
        steps = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.Sequential(block(16 * c, 16 * c), *(block(i, o, up=k < ups) for k, (i, o) in enumerate(steps)))

    def forward(self, z):
        if self.standard is not None:
            z = torch.cat([self.standard.own(z[:, : self.latent]), z[:, self.latent :]], 1)
        return self.blocks(self.first(z).unflatten(1, (-1, 4, 4, 4)))


class High(nn.Module):
    """G^H: features (b, 2c, d, S/4, S/4), of all slices or of a slab, to a volume (b, 1, 4d, S, S) in [-1, 1]. Equation (3)."""

    def __init__(self, c=32):
        super().__init__()
        self.first = block(2 * c, c, up=True)
        self.up = nn.Upsample(scale_factor=2)
        self.last = nn.Conv3d(c, 1, 3, padding=1)

    def forward(self, a):
        return torch.tanh(self.last(self.up(self.first(a))))


class Low(nn.Module):
    """G^L: features A to the low-resolution volume (b, 1, S/4, S/4, S/4) in [-1, 1]. Equation (2)."""

    def __init__(self, c=32):
        super().__init__()
        self.layers = nn.Sequential(block(2 * c, c), block(c, c // 2), nn.Conv3d(c // 2, 1, 3, padding=1))

    def forward(self, a):
        return torch.tanh(self.layers(a))


class EncoderHigh(nn.Module):
    """E^H: a sub-volume (b, 1, d, S, S) to its features (b, 2c, d/4, S/4, S/4)."""

    def __init__(self, c=32):
        super().__init__()
        self.layers = nn.Sequential(down(1, c), block(c, c), down(c, 2 * c))

    def forward(self, x):
        return self.layers(x)


class EncoderGround(nn.Module):
    """E^G: the features of all sub-volumes (b, 2c, S/4, S/4, S/4) to a code (b, latent).

    ``variational``: to a Gaussian of codes, as the encoder of a VAE; the code is its mean, made standard (`Standard`; G^A undoes
    that).
    """

    def __init__(self, size=256, latent=1024, c=32, variational=False):
        super().__init__()
        require_size(size)
        widths = [2 * c] + [max(1, 8 * c >> k) for k in reversed(range(levels(size)))]  # ... 4c, 8c
        steps = zip(widths[:-1], widths[1:], strict=True)
        last = nn.Conv3d(8 * c, latent * (2 if variational else 1), 4)
        self.layers = nn.Sequential(*(down(i, o) for i, o in steps), last)
        self.standard = Standard(latent) if variational else None

    def forward(self, a, posterior=False):
        """Codes; or with ``posterior``, where it is variational, mean and log variance of own codes, each (b, latent)."""
        code = self.layers(a).flatten(1)
        if posterior:
            return code.chunk(2, 1)
        return code if self.standard is None else self.standard(code.chunk(2, 1)[0])


class SpectralNorm(parametrizations._SpectralNorm):
    """torch's, but where there are no numbers, on "meta" or in the accountant, it does not iterate to begin with: that would find
    nothing, and takes most of the time of making the networks.
    """

    def _power_method(self, weight_mat, iterations):
        begins = iterations > self.n_power_iterations
        if not (begins and (weight_mat.is_meta or isinstance(weight_mat, FakeTensor))):
            super()._power_method(weight_mat, iterations)


def spectral_norm(layer):
    """The layer, its weight divided by its largest singular value."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class DiscriminatorLow(nn.Module):
    """D^L: low-resolution volumes (b, 1, S/4, S/4, S/4) to logits (b, 1 + classes)."""

    def __init__(self, size=256, c=32, classes=0):
        super().__init__()
        require_size(size)
        widths = [1] + [max(1, 8 * c >> k) for k in reversed(range(levels(size)))]
        steps = zip(widths[:-1], widths[1:], strict=True)
        convolutions = [nn.Conv3d(i, o, 4, stride=2, padding=1) for i, o in steps] + [nn.Conv3d(8 * c, 1 + classes, 4)]
        self.layers = nn.ModuleList(map(spectral_norm, convolutions))
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x).flatten(1)


class DiscriminatorHigh(nn.Module):
    """D^H: a sub-volume (b, 1, S/8, S, S) and where it starts, r / (largest r), to logits (b, 1 + classes)."""

    def __init__(self, size=256, fraction=1 / 8, c=32, classes=0):
        super().__init__()
        require_size(size, fraction)
        depth, count = int(size * fraction), levels(size) + 2
        widths = [1] + [max(1, 16 * c >> k) for k in reversed(range(count))]
        convolutions = []
        for c_in, c_out in zip(widths[:-1], widths[1:], strict=True):
            kernel = 4 if depth > 4 else min(depth, 2)  # few slices are left: halve them without padding
            padding = 1 if kernel == 4 else 0
            convolutions.append(nn.Conv3d(c_in, c_out, (kernel, 4, 4), (min(depth, 2), 2, 2), (padding, 1, 1)))
            depth = max(1, depth // 2)
        convolutions.append(nn.Conv3d(16 * c, 4 * c, (depth, 4, 4)))
        self.layers = nn.ModuleList(map(spectral_norm, convolutions))
        self.activation = nn.LeakyReLU(0.2)
        self.hidden = spectral_norm(nn.Linear(4 * c + 1, 2 * c))
        self.last = spectral_norm(nn.Linear(2 * c, 1))
        self.label = spectral_norm(nn.Linear(2 * c, classes)) if classes else None

    def forward(self, x, where):
        for layer in self.layers:
            x = self.activation(layer(x))
        x = x.flatten(1)
        x = self.activation(self.hidden(torch.cat([x, torch.full_like(x[:, :1], where)], 1)))
        return self.last(x) if self.label is None else torch.cat([self.last(x), self.label(x)], 1)


def networks(size=256, latent=1024, c=32, fraction=1 / 8, classes=0, variational=False):
    """All seven by the paper's names. ``c`` 32 is the paper's width; 8 and latent 256 are a quarter of it.

    ``variational``: see `EncoderGround`.
    """
    return {
        "G^A": Common(size, latent, c, classes, standard=variational),
        "G^L": Low(c),
        "G^H": High(c),
        "D^H": DiscriminatorHigh(size, fraction, c, classes),
        "D^L": DiscriminatorLow(size, c, classes),
        "E^H": EncoderHigh(c),
        "E^G": EncoderGround(size, latent, c, variational),
    }
