"""Distances between diagonal Gaussians, element by element: what 'matching P(Y_s) and P(Y_t)' (eq. 2) can mean.

A Gaussian is a pair (mean, log-variance) of tensors of one shape; so is every result.
"""

from torch import Tensor

Gaussian = tuple[Tensor, Tensor]  # mean and log-variance, of one shape


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    r"""Return KL(p || q), element by element.

    It is $\tfrac12(\log(\sigma_q^2/\sigma_p^2) + (\sigma_p^2 + (\mu_p - \mu_q)^2)/\sigma_q^2 - 1)$.
    """
    (mean_p, log_p), (mean_q, log_q) = p, q
    return (log_q - log_p + ((log_p - log_q).exp() + (mean_p - mean_q).square() * (-log_q).exp()) - 1) / 2


def reverse_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """Return KL(q || p)."""
    return kl(q, p)


def symmetric_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """Return (KL(p || q) + KL(q || p)) / 2."""
    return (kl(p, q) + kl(q, p)) / 2


def wasserstein2(p: Gaussian, q: Gaussian) -> Tensor:
    r"""Return the squared 2-Wasserstein distance $(\mu_p - \mu_q)^2 + (\sigma_p - \sigma_q)^2$."""
    (mean_p, log_p), (mean_q, log_q) = p, q
    return (mean_p - mean_q).square() + ((log_p / 2).exp() - (log_q / 2).exp()).square()


DIVERGENCES = {"kl": kl, "reverse_kl": reverse_kl, "symmetric_kl": symmetric_kl, "wasserstein2": wasserstein2}
