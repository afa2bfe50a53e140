"""Ridge regression whose penalty is chosen by leave-one-out error, in closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-2, 10))


def ridge(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Weights (n_features,) and intercept of y (n,) on x (n, n_features); the intercept is not penalised.

    Source: leave-one-out residuals from the hat matrix, Golub, Heath and Wahba (Technometrics 1979).
    """
    centre, mean = x.mean(axis=0, dtype=np.float64), float(y.mean())
    u, s, vt = np.linalg.svd(x - centre, full_matrices=False)
    along = u.T @ (y - mean)
    best, least = np.zeros(x.shape[1]), np.inf
    for penalty in PENALTIES:
        kept = s**2 / (s**2 + penalty)
        leverage = (u**2 * kept).sum(axis=1) + 1 / len(y)
        error = float((((y - mean) - u @ (kept * along)) ** 2 / (1 - leverage) ** 2).mean())
        if error < least:
            best, least = vt.T @ (s / (s**2 + penalty) * along), error
    return best, mean - float(centre @ best)
