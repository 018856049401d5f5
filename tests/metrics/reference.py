"""Reference implementation of the geometry: the printed formulas on complete arrays, in NumPy."""

import numpy as np


def geometry(x, y, classifier=None, predictions=None):
    x, classes = np.asarray(x, np.float64), np.unique(y)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    mu = np.stack([unit[y == k].mean(0) for k in classes])
    del unit
    within, total = 1 - (mu**2).sum(1), 1 - (mu.mean(0) ** 2).sum()
    means = np.stack([x[y == k].mean(0) for k in classes])
    centred = means - means.mean(0)
    deviations = x - means[np.searchsorted(classes, y)]
    sigma_w = deviations.T @ deviations / len(x)
    del deviations
    sigma_b = centred.T @ centred / len(classes)
    found = {
        "d_within": within.mean(),
        "d_total": total,
        "r2": 1 - within.mean() / total,
        "d_within_per_class": within,
        "r2_per_class": 1 - within / total,
        "nc1": np.trace(sigma_w @ np.linalg.pinv(sigma_b, rcond=1e-12, hermitian=True)) / len(classes),
        "effective_rank": effective_rank(x),
        "effective_rank_centered": effective_rank(x - x.mean(0)),
        **{f"nc2_{name}": value for name, value in simplex(centred).items()},
    }
    if classifier is not None:
        found |= {f"nc2_weight_{name}": value for name, value in simplex(classifier).items()}
        scaled = classifier / np.linalg.norm(classifier) - centred / np.linalg.norm(centred)
        found["nc3_self_duality"] = (scaled**2).sum()
    if predictions is not None:
        square = (means**2).sum(1)
        nearest = [(square - 2 * block @ means.T).argmin(1) for block in np.array_split(x, 1 + len(x) // 50_000)]
        found["nc4_agreement"] = (classes[np.concatenate(nearest)] == predictions).mean()
    return found


def simplex(rows):
    norms = np.linalg.norm(rows, axis=1)
    cosines = (rows @ rows.T / norms[:, None] / norms)[~np.eye(len(rows), dtype=bool)]
    return {
        "equinorm": norms.std() / norms.mean(),
        "equiangular": cosines.std(),
        "max_angle": np.abs(cosines + 1 / (len(rows) - 1)).mean(),
    }


def effective_rank(x):
    blocks = np.array_split(x, 1 + len(x) // 50_000)  # R of blocks has the singular values of the whole, to the last digits
    s = np.linalg.svd(np.concatenate([np.linalg.qr(block, mode="r") for block in blocks]), compute_uv=False)
    p = s[s > 0] / s.sum()
    return np.exp(-(p * np.log(p)).sum())
