"""Connected groups of items, as of clips that show the same and of videos with such clips."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def first_of_group(count: int, pairs: np.ndarray) -> np.ndarray:
    """For each of `count` items the least one that it is connected with by `pairs` (m, 2)."""
    edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, groups = connected_components(edges, directed=False)
    _, first = np.unique(groups, return_index=True)
    return first[groups]
