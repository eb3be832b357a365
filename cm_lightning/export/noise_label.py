"""A noise embedding for another noise label: the layer after it is fitted to give the same output.

Embeddings of 0.25 ln sigma change slowly with sigma. Those of diffusers, of 250 ln sigma, have frequencies from 1 down
to 1e-4. The slow ones span the same functions, so a least-squares fit agrees to the precision of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cm_lightning.errors import ConfigError

#: Largest error of the fit, in units of the largest output.
_TOLERANCE = 1e-5
_POINTS = 4001


@torch.no_grad()
def refitted(
    linear: nn.Linear,
    old: Callable[[Tensor], Tensor],
    new: Callable[[Tensor], Tensor],
    sigma_min: float,
    sigma_max: float,
) -> tuple[Tensor, Tensor]:
    """Fit ``weight new(log sigma) + bias`` to ``linear(old(log sigma))`` over a range of sigma.

    Args:
        linear: the layer that follows the embedding.
        old: (B,) float32 ln sigma -> (B, in), the embedding that the layer was trained with.
        new: (B,) float32 ln sigma -> (B, width), the embedding that replaces it.
        sigma_min: lower end of the range.
        sigma_max: upper end of the range.

    Returns:
        The weight (out, width) and the bias (out,).

    Raises:
        ConfigError: the old embedding changes too quickly with sigma, or the new one has too few channels.
    """
    logs = torch.linspace(math.log(sigma_min), math.log(sigma_max), 2 * _POINTS - 1, dtype=torch.float32)
    wanted = linear(old(logs)).double()
    given = nn.functional.pad(new(logs).double(), (0, 1), value=1.0)
    u, s, v = torch.linalg.svd(given[::2], full_matrices=False)
    kept = s > 1e-7 * s[0]  # smaller ones would give weights too large for float32
    solution = v[kept].T @ ((u[:, kept].T @ wanted[::2]) / s[kept, None])
    weight, bias = solution[:-1].T.float(), solution[-1].float()
    error = (given[:, :-1].float() @ weight.T + bias - wanted).abs().max()
    if error > _TOLERANCE * wanted.abs().max():
        raise ConfigError(
            "--format diffusers: the noise embedding changes too quickly with sigma, or has too few channels, to be "
            "written for 250 ln sigma: train with noise_scale 250 of the parameterization, or give --format onnx"
        )
    return weight.contiguous(), bias
