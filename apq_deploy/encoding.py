"""Genes as the one-hot features that the accuracy predictor reads. Source: APQ (CVPR 2020), section 3.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from apq_deploy.space import SearchSpace


def encode_genes(space: SearchSpace, genes: NDArray[np.int8]) -> NDArray[np.float32]:
    """Features of genomes, (n, n_features) float32.

    Per block: kernel size, middle channels, then the four bit widths, each one-hot; a skipped block is all zeros. The
    bits are always encoded; `space.architecture_features` selects the columns without them.
    """
    _, blocks = space.split(genes)
    n = len(genes)
    widths = space.cardinalities[space.n_stages :]
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]]).reshape(space.n_blocks, -1)
    features = np.zeros((n, int(widths.sum())), np.float32)
    columns = starts[None] + blocks
    rows = np.broadcast_to(np.arange(n)[:, None, None], columns.shape)
    features[rows, columns] = space.active(genes)[..., None]
    return features
