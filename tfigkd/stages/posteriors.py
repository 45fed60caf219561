"""Soft labels of `losses.osakd` in the teacher's space: computed once from stored logits, and kept beside them."""

import numpy as np

from tfigkd.config.experiment import Config
from tfigkd.data import Examples
from tfigkd.runtime import console
from tfigkd.runtime.files import atomic, checksum, finished, locked, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.stages.data import training_choice
from tfigkd.stages.overlays import load_knowledge, load_views, store_folder, views_name
from tfigkd.stages.teacher import teacher_folder
from tfigkd.stages.workdir import Workdir

FILE = "posteriors.npy"
BLOCK = 4096
"""Images whose stored views are in memory at once."""


def class_shares(points: np.ndarray, labels: np.ndarray, neighbors: int) -> np.ndarray:
    """Return the share of each class among the nearest other points, as `losses.neighbor_posteriors` of all of them.

    Args:
        points: Logits [N,C].
        labels: Integers [N].
        neighbors: k; all others where they are fewer.

    Returns:
        float32 [N,C]; rows sum to 1.
    """
    from sklearn.neighbors import NearestNeighbors  # most runs do not need it

    search = NearestNeighbors(n_neighbors=min(neighbors, len(points) - 1)).fit(points)
    nearest = search.kneighbors(return_distance=False)  # without points to look for, none is its own neighbor
    shares = np.zeros(points.shape, np.float32)
    for neighbor in nearest.T:
        shares[np.arange(len(points)), labels[neighbor]] += 1
    return shares / np.float32(nearest.shape[1])


def load_posteriors(config: Config, workdir: Workdir, examples: Examples) -> np.ndarray:
    """Return the soft labels of all training examples, float32 [N,C]; the stored logits must be there.

    Those of a store and a number of neighbors are computed once and shared by arms and seeds.

    Args:
        config: The run's.
        workdir: Where its teacher lies.
        examples: All that trains the student; the neighbors are looked for among them.

    Raises:
        UserError: There is no store, or it is damaged.
    """
    source = views_name(config, workdir) if config.needs_views else store_folder(config, workdir).name
    neighbors = config.losses.osakd.neighbors
    identity = fingerprint("neighbors", source, training_choice(config.data), neighbors)
    folder = teacher_folder(config, workdir) / "neighbors" / identity
    with locked(folder, wait=True):
        if finished(folder, identity) is None:
            found = class_shares(_points(config, workdir, examples), examples.labels, neighbors)
            with atomic(folder / FILE) as temporary:
                np.save(temporary, found)
            own = found[np.arange(len(found)), examples.labels].mean()
            write_manifest(folder, identity, files={FILE: checksum(folder / FILE)}, own_class=float(own))
            console.status(f"{neighbors} neighbors of each image: {100 * own:.1f} % are of its own class  ({folder})")
        return np.load(folder / FILE)


def _points(config: Config, workdir: Workdir, examples: Examples) -> np.ndarray:
    """Return the teacher's logits of each example, of several views their mean, float32 [N,C]."""
    if not config.needs_views:
        return load_knowledge(config, workdir, examples).logits[:]
    views = load_views(config, workdir, examples)
    starts = range(0, len(views), BLOCK)
    return np.concatenate([views[start : start + BLOCK].astype(np.float32).mean(axis=1) for start in starts])
