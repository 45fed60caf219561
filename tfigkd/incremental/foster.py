"""Networks that grow by classes: widened, boosted by a sibling and compressed into one again (FOSTER).

See Wang et al. 2022, "FOSTER: Feature Boosting and Compression for Class-Incremental Learning" (arXiv 2204.04662). What
trains is a `Distiller`, like any other. All networks have a dense last layer named "logits".
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from tfigkd.incremental.losses import HEAD, AuxiliaryClassifier, KnownKL
from tfigkd.losses import BalancedKL, effective_weights
from tfigkd.models.copies import copy_state
from tfigkd.models.graph import maker_of
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller

LOGITS = "logits"

Make = Callable[[], keras.Model]
"""Makes a fresh network of all classes that there are after a step."""


def front_of(model: keras.Model, name: str) -> keras.Model:
    """Return the layers in front of a network's last one, as a model from images to features [B,D].

    Args:
        model: The network; its layers are shared.
        name: Of the result.

    Raises:
        UserError: The last layer is not a dense one named "logits".
    """
    last = model.layers[-1]
    if last.name != LOGITS or not isinstance(last, keras.layers.Dense):
        raise UserError(
            f"class-incremental training needs a network whose last layer is dense and named {LOGITS!r}, got "
            f"{last.name!r} in {model.name}; choose a student.model of this package"
        )
    return keras.Model(model.input, last.input, name=name)


def widened(old: keras.Model, wider: keras.Model) -> keras.Model:
    """Give a network the weights of one with fewer classes; its logits of the other classes stay as they are.

    Args:
        old: A network.
        wider: The same network with more classes, freshly made; it is altered.

    Returns:
        `wider`.
    """

    def values(layer: keras.Layer) -> list[np.ndarray] | None:
        if layer.name != LOGITS:
            # copies: on JAX two networks with the same arrays cannot be trained as parts of one
            return [weight.copy() for weight in layer.get_weights()] or None
        known = layer.units
        kept = [weight.copy() for weight in wider.get_layer(LOGITS).get_weights()]
        for weight, before in zip(kept, layer.get_weights(), strict=True):
            weight[..., :known] = before
        return kept

    copy_state(old, wider, values)
    return wider


def _counted(counts: Sequence[int]) -> list[int]:
    """Return the examples of each class, at least one: a class of which nothing is kept has no finite weight."""
    return [max(int(count), 1) for count in counts]


def boosted(old: keras.Model, new: keras.Model, known: int, weights: np.ndarray) -> tuple[keras.Model, keras.Model]:
    """Join a network, which is frozen, and a sibling by one classifier on the features of both.

    Args:
        old: The network so far, images to logits; its front is frozen, and the classifier starts from its own.
        new: The sibling; only its front is used.
        known: Classes, the first ones, of which the old network's classifier is right.
        weights: Of all classes, positive, [C]; see `effective_weights`.

    Returns:
        The joint network, images to logits [B,C], and the same with each logit divided by its class's weight, which is
        what trains: a rare class then needs the larger logit.
    """
    fronts = [front_of(old, "old"), front_of(new, "new")]
    fronts[0].trainable = False
    images = keras.Input(old.input.shape[1:], name="image")
    features = [fronts[0](images, training=False), fronts[1](images)]
    joint = keras.layers.Concatenate(dtype="float32", name="features")(features)
    head = keras.layers.Dense(len(weights), dtype="float32", name=HEAD)
    logits = head(joint)
    last = old.get_layer(LOGITS)
    before, kernel = (ops.convert_to_numpy(layer.kernel) for layer in (last, head))
    kernel = kernel.copy()
    kernel[: len(before), :known] = before[:, :known]
    head.kernel.assign(kernel)
    if last.use_bias:
        head.bias.assign(ops.pad(last.bias[:known], [[0, len(weights) - known]]))
    aligned = keras.layers.Rescaling([float(1 / weight) for weight in weights], dtype="float32", name="aligned")
    return keras.Model(images, logits, name="joint"), keras.Model(images, aligned(logits), name="boosted")


def boosting(
    old: keras.Model, make: Make, counts: Sequence[int], *, beta: float, known_weight: float, temperature: float
) -> tuple[Distiller, keras.Model]:
    """Return the training of a sibling beside the old network, and the joint network that it leads to.

    The loss is the cross-entropy of the aligned logits and of the sibling alone, and the divergence from the old
    network over the classes that it knows. The sibling starts from the old network.

    Args:
        old: The network so far; it is frozen.
        make: Makes a network of all classes.
        counts: Examples of each class in this step; none counts as one.
        beta: Of the effective numbers by which the logits are aligned.
        known_weight: Weight of the divergence.
        temperature: Of the divergence.
    """
    known, before = old.get_layer(LOGITS).units, widened(old, make())
    joint, aligned = boosted(before, widened(old, make()), known, effective_weights(_counted(counts), beta))
    tap = maker_of(before.get_layer(LOGITS).input).name
    losses = {
        "known": KnownKL(known, HEAD, temperature),
        "auxiliary": AuxiliaryClassifier(len(counts), "new", tap),
    }
    weights = {"known": known_weight, "auxiliary": 1.0}
    return Distiller(aligned, losses=losses, loss_weights=weights, hard_weight=1.0, teacher=before), joint


def compression(
    old: keras.Model, joint: keras.Model, make: Make, counts: Sequence[int], *, beta: float, temperature: float
) -> Distiller:
    """Return the training of one network to be what the joint one is, by balanced distillation without labels.

    Args:
        old: The network before this step, from which the one starts.
        joint: From `boosting`, trained.
        make: Makes a network of all classes.
        counts: Examples of each class in this step; none counts as one.
        beta: Of the effective numbers that weigh the targets.
        temperature: Of the distillation.
    """
    loss = BalancedKL(temperature, beta, _counted(counts))
    student = widened(old, make())
    weights = {"bkd": 1.0 / temperature**2}  # the authors have no factor T², which this loss has
    return Distiller(student, losses={"bkd": loss}, loss_weights=weights, hard_weight=0.0, teacher=joint)


def distillation(old: keras.Model, make: Make, *, known_weight: float, temperature: float) -> Distiller:
    """Return the training of the widened network by hard labels and by the old network over the classes it knows.

    Args:
        old: The network so far, the teacher.
        make: Makes a network of all classes.
        known_weight: Weight of the distillation.
        temperature: Of the distillation.
    """
    losses = {"known": KnownKL(old.get_layer(LOGITS).units, temperature=temperature)}
    student, teacher = widened(old, make()), widened(old, make())
    return Distiller(student, losses=losses, loss_weights={"known": known_weight}, hard_weight=1.0, teacher=teacher)


def fine_tuning(old: keras.Model, make: Make) -> Distiller:
    """Return the training of the widened network by hard labels only."""
    return Distiller(widened(old, make()))


def herded(features: np.ndarray, count: int) -> np.ndarray:
    """Return which examples of a class to keep, the most representative first (herding).

    Each next one brings the mean of those chosen nearest to the mean of all (Welling 2009; Rebuffi et al. 2017, arXiv
    1611.07725).

    Args:
        features: [N,D].
        count: How many; all of them where there are no more.

    Returns:
        Integers [min(count, N)].
    """
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    mean, total = features.mean(axis=0), np.zeros(features.shape[1])
    chosen: list[int] = []
    left = np.ones(len(features), bool)
    for number in range(1, min(count, len(features)) + 1):
        distances = np.linalg.norm(mean - (total + features) / number, axis=1)
        best = int(np.where(left, distances, np.inf).argmin())
        chosen.append(best)
        left[best], total = False, total + features[best]
    return np.array(chosen, np.int64)
