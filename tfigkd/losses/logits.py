"""Losses on logits: cross-entropy with hard or soft targets; softened, decoupled, standardized, correlated logits."""

from typing import Any, Self

import keras
from keras import ops

from tfigkd.losses.base import (
    Loss,
    PerExampleLoss,
    Tensor,
    check_not_negative,
    check_positive,
    flat_labels,
    l2_normalize,
    pearson_distance,
)

LEAST = -3e38
"""A logarithm of zero that is finite in float32."""
SOFTNESS = 1.0
"""Scale of the differences of logits that separate two soft ranks."""


def cross_entropy(labels: Tensor, logits: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy with hard or soft targets.

    Args:
        labels: Integer classes [B] or [B,1], or class probabilities [B,C] with C > 1.
        logits: [B,C].
        label_smoothing: Share of a target's mass spread evenly over the classes, in [0, 1).

    Returns:
        Loss of each example, [B], in nats; NaN where an integer label is no class.
    """
    log_probabilities = ops.log_softmax(ops.cast(logits, "float32"))
    labels = flat_labels(labels)
    if len(labels.shape) == 1:
        labels = ops.cast(labels, "int32")
        # without this the one-hot row of a label that is no class is zero, and so is its loss
        labels = ops.one_hot(labels, logits.shape[-1]) + _nan_unless_class(labels, logits.shape[-1])[:, None]
    targets = ops.cast(labels, "float32")
    targets = targets * (1.0 - label_smoothing) + label_smoothing / logits.shape[-1]
    return -ops.sum(targets * log_probabilities, axis=-1)


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """Return the loss of softened-logits distillation, T² · KL(teacher ‖ student).

    See Hinton et al. 2015 (arXiv 1503.02531, section 2.1). The factor T² keeps the size of the gradient when the
    temperature changes. The loss is computed from log-softmax, so it stays finite if a probability underflows.

    Args:
        teacher_logits: [B,C].
        student_logits: [B,C].
        temperature: T > 0, for both.

    Returns:
        Loss of each example, [B], in nats.
    """
    teacher_log = ops.log_softmax(ops.cast(teacher_logits, "float32") / temperature)
    student_log = ops.log_softmax(ops.cast(student_logits, "float32") / temperature)
    return temperature**2 * _kl(teacher_log, student_log)


def decoupled_kl(
    teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Return the loss of decoupled distillation (DKD; Zhao et al. 2022, arXiv 2203.08679).

    The loss is T² · (alpha · KL(b_t ‖ b_s) + beta · KL(q_t ‖ q_s)), where
    b = [p(y), 1 - p(y)] is the network's confidence in the label, and q its distribution over the other classes.
    KL(p_t ‖ p_s) is KL(b) + (1 - p_t(y)) · KL(q): in plain distillation the weight of q vanishes as the teacher
    becomes more confident.

    Args:
        teacher_logits: [B,C] with C > 1.
        student_logits: [B,C].
        labels: Integer classes [B] or [B,1]; b and q refer to the label even if the teacher predicts another class.
        alpha: Weight of b.
        beta: Weight of q.
        temperature: T > 0, for both.

    Returns:
        Loss of each example, [B], in nats; NaN where a label is no class.

    Raises:
        ValueError: Labels are not one integer per example; with mixup they are not.
    """
    labels = flat_labels(labels)
    if len(labels.shape) != 1:
        raise ValueError(f"decoupled_kl needs one label per example, integers [B]; got shape {tuple(labels.shape)}")
    labels = ops.cast(labels, "int32")
    is_label = ops.one_hot(labels, teacher_logits.shape[-1], dtype="bool")

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = ops.cast(logits, "float32") / temperature
        others = ops.where(is_label, -1e9, logits)
        rest = ops.logsumexp(others, axis=-1, keepdims=True)
        label = ops.sum(ops.where(is_label, logits, 0.0), axis=-1, keepdims=True)
        # log(1 - p) from the logits of the other classes: 1 - p itself is 0 in float32 for a confident student
        binary = ops.concatenate([label, rest], axis=-1) - ops.logsumexp(logits, axis=-1, keepdims=True)
        return binary, ops.where(is_label, 0.0, logits - rest)

    (teacher_binary, teacher_others), (student_binary, student_others) = split(teacher_logits), split(student_logits)
    # the entry of the label is 0 in both and adds exp(0) · (0 - 0) = 0
    loss = alpha * _kl(teacher_binary, student_binary) + beta * _kl(teacher_others, student_others)
    return temperature**2 * loss + _nan_unless_class(labels, teacher_logits.shape[-1])


def logit_distance(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return the mean squared difference of logits, from each of which the mean over the classes is taken off.

    A number added to all logits changes no probability, so the student need not copy it.

    Args:
        teacher_logits: [B,C].
        student_logits: [B,C].

    Returns:
        Loss of each example, [B].
    """
    difference = ops.cast(teacher_logits, "float32") - ops.cast(student_logits, "float32")
    return ops.mean(ops.square(difference - ops.mean(difference, axis=-1, keepdims=True)), axis=-1)


def standardize_logits(logits: Tensor) -> Tensor:
    """Return the z-scores of each example's logits, by the sample deviation (Sun et al. 2024, arXiv 2403.01427).

    The student then learns the order and the proportions of the teacher's logits but not their range, so only the
    hard label affects calibration. With C classes the largest possible score is (C - 1) / √C, for ten classes 2.85:
    at temperature 2 no soft target exceeds 0.35.

    Args:
        logits: [B,C] with C > 1.

    Returns:
        float32 [B,C]; equal logits become zeros and pass no gradient.
    """
    logits = ops.cast(logits, "float32")
    return (logits.shape[-1] - 1) ** 0.5 * l2_normalize(logits - ops.mean(logits, axis=-1, keepdims=True))


def soft_ranks(values: Tensor) -> Tensor:
    """Return differentiable ranks: r_i = ½ + Σ_j sigmoid((v_i - v_j) / `SOFTNESS`).

    Args:
        values: [B,C].

    Returns:
        float32 [B,C], from 1 for the smallest value to C for the largest; differences below `SOFTNESS` blur the ranks.
    """
    values = ops.cast(values, "float32")
    return 0.5 + ops.sum(ops.sigmoid((values[:, :, None] - values[:, None, :]) / SOFTNESS), axis=-1)


def rank_distance(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return one minus Pearson's correlation of the `soft_ranks` of logits [B,C], in [0, 2], for each example, [B].

    It ranks logits, because the ranks of tiny probabilities are noise.
    """
    return pearson_distance(soft_ranks(teacher_logits), soft_ranks(student_logits))


def correlation_distance(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: float,
    inter: float,
    intra: float,
    rank: float = 0.0,
) -> Tensor:
    """Return a distance based on correlations (DIST; Huang et al. 2022, arXiv 2205.10536).

    The loss is inter · mean_b(1 - r_b) + intra · mean_c(1 - r_c): r_b is Pearson's correlation of an example's
    probabilities over the classes, r_c that of a class's probabilities over the batch. Both are invariant to
    p → a·p + c, so a student need not copy the values of a much stronger teacher. The third term,
    rank · the mean `rank_distance`, is our interpretation of the rank part of R2KD (Kim et al. 2024, arXiv 2311.13934).

    The loss has no factor T²: the correlation does not depend on scale, so its gradient does not shrink with the
    temperature. For the same loss in code with that factor, divide the weight here by T².

    Args:
        teacher_logits: [B,C].
        student_logits: [B,C].
        temperature: T > 0, for both.
        inter: Weight of the correlation over classes.
        intra: Weight of the correlation over the batch; noisy where a class is rare in the batch.
        rank: Weight of the rank correlation over classes.

    Returns:
        Loss of the batch, a scalar.
    """
    teacher, student = _softened(teacher_logits, temperature), _softened(student_logits, temperature)
    loss = inter * ops.mean(pearson_distance(teacher, student)) + intra * ops.mean(
        pearson_distance(teacher, student, 0)
    )
    if rank:
        loss = loss + rank * ops.mean(rank_distance(teacher_logits, student_logits))
    return loss


@keras.saving.register_keras_serializable("tfigkd")
class KLDivergence(PerExampleLoss):
    """`kl_divergence` for Keras's own Distiller and for `tfigkd.Distiller`.

    Suggested start for ten classes: T in {2, 4}, weight in {0.5, 0.9}; with standardized logits T in {0.5, 1, 2},
    weight in {1, 4, 9}.

    Args:
        temperature: T > 0. Defaults to `2.5`.
        standardize: Standardize the logits of both first, see `standardize_logits`. Defaults to `False`.
    """

    def __init__(self, temperature: float = 2.5, standardize: bool = False):
        check_positive(temperature=temperature)
        self.temperature = temperature
        self.standardize = standardize

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]."""
        if self.standardize:
            teacher_outputs, student_outputs = standardize_logits(teacher_outputs), standardize_logits(student_outputs)
        return kl_divergence(teacher_outputs, student_outputs, temperature=self.temperature)


@keras.saving.register_keras_serializable("tfigkd")
class LogitRegression(PerExampleLoss):
    """`logit_distance` for Keras's own Distiller and for `tfigkd.Distiller`.

    With a fine-tuning on the hard label after it, it is the schedule of KD-DAGFM (Tian et al. 2023, arXiv 2211.11159).
    """

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]."""
        return logit_distance(teacher_outputs, student_outputs)


@keras.saving.register_keras_serializable("tfigkd")
class DKD(PerExampleLoss):
    """`decoupled_kl`, for `tfigkd.Distiller` only: Keras's own Distiller passes no labels.

    Suggested start for ten classes: beta in {1, 2, 8}, T in {2, 4}, weight 1 for this loss and for the hard label; the
    authors increase the weight linearly over the first 20 of 240 epochs. With large T² · beta this loss can dominate
    the hard label, so watch its share of the gradient.

    Args:
        alpha: Weight of the part for the label. Defaults to `1.0`.
        beta: Weight of the part for the other classes. Defaults to `2.0`; the authors' value 8 is for 100 classes.
        temperature: T > 0. Defaults to `4.0`.
        standardize: Standardize the logits of both first, see `standardize_logits`. Defaults to `False`.
    """

    takes_labels = True

    def __init__(self, alpha: float = 1.0, beta: float = 2.0, temperature: float = 4.0, standardize: bool = False):
        check_positive(temperature=temperature)
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.standardize = standardize

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss of each example, [B].

        Args:
            teacher_outputs: Logits [B,C].
            student_outputs: Logits [B,C].
            labels: Integers [B] or [B,1].

        Raises:
            ValueError: There are no labels.
        """
        if labels is None:
            raise ValueError("DKD needs labels, integers [B], as its third argument; got none")
        if self.standardize:
            teacher_outputs, student_outputs = standardize_logits(teacher_outputs), standardize_logits(student_outputs)
        weights = {"alpha": self.alpha, "beta": self.beta}
        return decoupled_kl(teacher_outputs, student_outputs, labels, temperature=self.temperature, **weights)

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Return the mean loss of the batch, a scalar; `labels` is a keyword argument."""
        return ops.mean(self.per_example(teacher_outputs, student_outputs, kwargs.get("labels")))


class _RankLoss(Loss):
    @classmethod
    def from_config(cls, config: dict) -> Self:
        """Rebuild the loss from its constructor arguments, to which `softness` belonged in earlier versions.

        Raises:
            ValueError: It is not `SOFTNESS`.
        """
        config = dict(config)
        if (softness := config.pop("softness", SOFTNESS)) != SOFTNESS:
            raise ValueError(f"the softness of ranks is {SOFTNESS:g} in this version, got {softness:g}")
        return super().from_config(config)


@keras.saving.register_keras_serializable("tfigkd")
class R2KD(_RankLoss, PerExampleLoss):
    """Correlations of values and ranks with the teacher and a pruned copy of it, for `tfigkd.Distiller` only.

    For each of the two the loss is value · (1 - r of the probabilities) + rank · (1 - r of the logits' soft ranks),
    with Pearson's r over the classes; that of the pruned teacher, which is not retrained, is multiplied by `second`
    (Kim et al. 2024, arXiv 2311.13934). The pruning by magnitude in each kernel, its share, the soft ranks and the
    weights are our reading, since only the abstract was available to us. DIST has the values, and correlations over
    the batch.

    Args:
        temperature: T > 0, of the probabilities. Defaults to `4.0`.
        value: Weight of the values. Defaults to `1.0`.
        rank: Weight of the ranks. Defaults to `1.0`.
        pruned: Share of the weights that the second teacher lacks; 0 has only the teacher. Defaults to `0.3`.
        second: Weight of the second teacher. Defaults to `1.0`.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        value: float = 1.0,
        rank: float = 1.0,
        pruned: float = 0.3,
        second: float = 1.0,
    ):
        check_positive(temperature=temperature)
        check_not_negative(value=value, rank=rank, second=second)
        if not 0 <= pruned < 1:
            raise ValueError(f"pruned must be in [0, 1), got {pruned}")
        self.temperature = temperature
        self.value = value
        self.rank = rank
        self.pruned = pruned
        self.compares = "pruned" if pruned else "outputs"
        self.second = second

    def per_example(self, teacher_outputs: Any, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]; with a pruned teacher, the teacher's outputs are a pair of logits."""
        if not self.pruned:
            return self._distance(teacher_outputs, student_outputs)
        first, second = (self._distance(logits, student_outputs) for logits in teacher_outputs)
        return first + self.second * second

    def _distance(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        values = pearson_distance(*(_softened(one, self.temperature) for one in (teacher_logits, student_logits)))
        return self.value * values + self.rank * rank_distance(teacher_logits, student_logits)


@keras.saving.register_keras_serializable("tfigkd")
class DIST(_RankLoss):
    """`correlation_distance` for Keras's own Distiller and for `tfigkd.Distiller`.

    It is a loss of the batch and ignores sample weights. Suggested start for ten classes: inter = intra in {1, 2, 4},
    T in {1, 4}, weight 1 for this loss and for the hard label, which alone determines the confidence. With
    `inter=1, intra=0, rank=1` it is the distance of R2KD.

    Args:
        temperature: T > 0. Defaults to `4.0`.
        inter: Weight of the correlation over classes. Defaults to `2.0`.
        intra: Weight of the correlation over the batch. Defaults to `2.0`.
        rank: Weight of the rank correlation. Defaults to `0.0`.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        inter: float = 2.0,
        intra: float = 2.0,
        rank: float = 0.0,
    ):
        check_positive(temperature=temperature)
        check_not_negative(inter=inter, intra=intra, rank=rank)
        self.temperature = temperature
        self.inter = inter
        self.intra = intra
        self.rank = rank

    def compute_loss(self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any) -> Tensor:
        """Return the loss of the batch, a scalar."""
        return correlation_distance(teacher_outputs, student_outputs, **self.get_config())


def _softened(logits: Tensor, temperature: float) -> Tensor:
    """Return the probabilities at a temperature, float32 [B,C]."""
    return ops.softmax(ops.cast(logits, "float32") / temperature)


def _nan_unless_class(labels: Tensor, classes: int) -> Tensor:
    """Return 0 for each integer label that is a class, NaN for any other, [B]."""
    return ops.where(ops.logical_and(labels >= 0, labels < classes), 0.0, float("nan"))


def _kl(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    # a class that the teacher excludes, by a logit of -inf, adds 0 · (least - student) = 0, where 0 · -inf were NaN
    teacher_log = ops.maximum(teacher_log, LEAST)
    return ops.sum(ops.exp(teacher_log) * (teacher_log - student_log), axis=-1)
