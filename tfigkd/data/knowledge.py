"""What is stored of a teacher, in the order of the examples that are trained on."""

from dataclasses import dataclass

import numpy as np

from tfigkd.data.stored import StoredArrays
from tfigkd.data.top_logits import StoredViews, TopLogits


@dataclass(frozen=True)
class Knowledge:
    """What an overlay store says of N examples, in the order of those examples.

    Attributes:
        logits: The teacher's, float32 [N,C], of the unaugmented image; filled up where `view.top_logits` says so.
        maps: uint8 [N,H,W], each scaled by its own maximum; of a coarser grid where `attribution.grid` says so; in the
            files of their store where the pictures are on disk.
        scales: That maximum, float32 [N], in logits.
        errors: Completeness errors, float32 [N].
        usable: bool [N], false for maps over the completeness gate.
    """

    logits: np.ndarray | TopLogits
    maps: np.ndarray | StoredArrays
    scales: np.ndarray
    errors: np.ndarray
    usable: np.ndarray


@dataclass(frozen=True)
class StoredAttention:
    """The teacher's stored attention maps of N examples, in the order of those examples.

    Attributes:
        tap: The teacher's layer.
        maps: float16 [N,K,h,w], of K views; or with `view.attention = "moved"` and K = 1 of the unaugmented image.
    """

    tap: str
    maps: StoredViews


@dataclass(frozen=True)
class TeacherTargets:
    """What is stored of the teacher, in the order of the examples.

    Attributes:
        knowledge: Logits and maps of the overlay store.
        views: The teacher's logits of K stored views, [N,K,C].
        attention: The teacher's stored attention maps.
        posteriors: Soft labels of the examples, [N,C].
    """

    knowledge: Knowledge | None = None
    views: StoredViews | None = None
    attention: StoredAttention | None = None
    posteriors: np.ndarray | None = None
