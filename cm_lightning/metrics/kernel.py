"""The kernel distance of features (KID, Binkowski et al. 2018), unbiased even for a few hundred images."""

from __future__ import annotations

from torch import Tensor

from cm_lightning.metrics.comparison import AgainstReal, Comparison


class KernelDistance(Comparison):
    """The unbiased squared maximum mean discrepancy, ``kid``: near 0 for equal distributions, sometimes below it."""

    def against(self, real: Tensor) -> AgainstReal:
        within_real = mean_kernel(real)

        def distance(drawn: Tensor) -> dict[str, float]:
            return {"kid": float(within_real + mean_kernel(drawn) - 2 * mean_kernel(drawn, real))}

        return distance


def mean_kernel(x: Tensor, y: Tensor | None = None) -> Tensor:
    """The mean of (a.b / D + 1)^3 over pairs of features (N, D) and (M, D).

    If y is None, the pairs are those of two different features of x; for fewer than two features the mean is NaN.
    """
    x = x.double()
    kernel = (x @ (x if y is None else y.double()).T / x.shape[1] + 1) ** 3
    return kernel.mean() if y is not None else (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))
