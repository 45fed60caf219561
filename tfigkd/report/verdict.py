"""What a run's figures say about it in plain words: each remark names what is wrong and which flag changes it.

Remarks are made of plain values; nothing is measured. An empty list means that nothing was found.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from tfigkd.config.export_fields import format_of
from tfigkd.config.fields import TeacherConfig
from tfigkd.config.reading import from_mapping
from tfigkd.measure.chance import explained_by_guessing, hardly_learned
from tfigkd.measure.statistics import LEVEL, wilson
from tfigkd.report.facts import Facts, History
from tfigkd.report.table import interval
from tfigkd.runtime.text import counted, percent
from tfigkd.training.ledger import HARD, inert_terms

WIDE = 0.10
"""Width of an accuracy's 95 % interval above which its images are too few."""
GAP = 0.10
"""Difference of training and validation accuracy above which a network has overfitted."""
FEW_MAPS = 0.5
"""Share of maps within the tolerance below which overlays hardly happen."""
INT8_AGREEMENT, INT8_LOSS = 0.95, 0.02
"""Agreement of a file with Keras below which, and loss of accuracy above which, the file is another model."""
QUANTIZED = ("dynamic", "int8", "int16x8")


@dataclass(frozen=True)
class Remark:
    """One thing that is wrong with a run.

    Attributes:
        kind: A short name, such as `at chance`.
        text: One or two sentences.
        flag: What to change, mostly flags of the command; empty where no change helps.
    """

    kind: str
    text: str
    flag: str = ""

    @property
    def sentence(self) -> str:
        """The text and what to change."""
        return f"{self.text} Change: {self.flag}." if self.flag else self.text


def read_remarks(path: Path) -> list[Remark]:
    """Return the remarks in the file that stage `report` wrote of a run.

    Raises:
        OSError: The file is missing.
        ValueError: It is no JSON.
        TypeError: It holds something else.
    """
    return [Remark(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def verdict(facts: Facts) -> list[Remark]:
    """Return all that is wrong with a run, the worst first. Of a smoke run, whose figures mean nothing: one remark."""
    if facts.row["smoke"]:
        return [Remark("smoke run", "This is a smoke run: its figures say that the stages work, and nothing else.")]
    evaluated, config, roles = facts.evaluated, facts.config, facts.roles
    n_test, classes = evaluated["n_test"], len(evaluated["class_names"])
    counts = [one["examples"] for one in evaluated["per_class"].get("student", [])]
    trained_teacher = from_mapping(TeacherConfig, config["teacher"]).trained
    found = level(roles, counts or [n_test // classes] * classes, trained_teacher=trained_teacher)
    found += below_student(roles, evaluated.get("disagreement", {}))
    found += sizes(roles)
    held_out = (facts.data or {}).get("counts", {}).get("validation", 0)
    found += few_images("test", n_test, roles["student"]["accuracy"])
    # with data.train_split = "train+validation" nothing is judged by validation
    held_out = 0 if facts.row["saw_validation"] else held_out
    found += few_images("validation", held_out, facts.row["validation_accuracy"] if held_out else 0.0)
    found += overfitting(facts.histories.get("student", []), held_out)
    hard = config["training"]["hard_weight"] is None and config["losses"]["kd"]["weight"] > 0
    found += idle_terms(facts.ledger, "--losses.kd.weight" if hard else "--training.hard_weight")
    if facts.store is not None and config["overlay"]["probability"] and config["control"]["maps"] != "none":
        found += idle_overlays(facts.errors.tolist(), facts.store["identity"]["attribution"]["tolerance"])
    return found + far_files((facts.exported or {}).get("parity", {}))


def level(roles: Mapping[str, Mapping[str, Any]], counts: Sequence[int], *, trained_teacher: bool) -> list[Remark]:
    """Return networks that are at chance, or hardly above it.

    Both are judged by the balanced accuracy, as `near_chance` judges a teacher; what is called chance in the text is
    the accuracy of an answer that is always the most frequent class.

    Args:
        roles: Figures by role, with `accuracy` and `balanced_accuracy`.
        counts: Test images of each class.
        trained_teacher: Whether the teacher was trained here, so that its training can be changed.
    """
    found = []
    n_test, classes, occurring = sum(counts), len(counts), [count for count in counts if count]
    chance = max(counts) / n_test
    for role, values in roles.items():
        accuracy, where = values["accuracy"], "teacher.training" if role == "teacher" else "training"
        flag = f"--{where}.epochs, --{where}.learning_rate"
        if role == "compressed":
            flag = "--compress.steps, --compress.sparsity"
        elif role == "teacher" and not trained_teacher:
            flag = "--teacher.model; check the range of its inputs and the order of its classes"
        of = f"{percent(accuracy)} of {counted(n_test, 'test image')} in {counted(classes, 'class', 'classes')}"
        recall = values["balanced_accuracy"]
        if explained_by_guessing(recall, occurring):
            text = f"The {role} is at chance: {of} ({interval(accuracy, n_test)}), where {percent(chance)} is chance."
            found.append(Remark("at chance", text, flag))
        elif hardly_learned(recall, occurring):
            text = f"The {role} has hardly learned: {of}, where {percent(chance)} is chance."
            found.append(Remark("hardly learned", text, flag))
    return found


def below_student(roles: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Mapping[str, Any]]) -> list[Remark]:
    """Return a teacher that is worse than its student, beyond the noise: exact McNemar's test on the test images.

    Args:
        roles: Figures by role.
        counts: Student's role to `only_reference` and `only_model`, from `metrics.disagreement`.
    """
    if "teacher" not in roles or "student" not in counts:
        return []
    teacher, student = counts["student"]["only_reference"], counts["student"]["only_model"]
    if student <= teacher or stats.binomtest(student, student + teacher).pvalue >= LEVEL:
        return []
    text = (
        f"The teacher is worse than its student: {percent(roles['teacher']['accuracy'])} against "
        f"{percent(roles['student']['accuracy'])}, so there is little to learn from it."
    )
    return [Remark("teacher worse", text, "--teacher.model, --teacher.training.epochs")]


def sizes(roles: Mapping[str, Mapping[str, Any]]) -> list[Remark]:
    """Return a student that is larger or slower than its teacher, by parameters, multiply-adds and latency."""
    if "teacher" not in roles:
        return []
    teacher, student = roles["teacher"], roles.get("compressed", roles["student"])
    found, flag = [], "--student.drop_blocks, --student.width, --student.model"
    small, large = teacher["parameters"], student["parameters"]
    if large >= small:
        text = f"The student is not smaller than its teacher: {large:,} parameters against {small:,} "
        text += f"({large / small:.1f} times)."
        found.append(Remark("larger student", text, flag))
    of_time = [name for name in ("int8_ms", "float32_ms") if name in teacher and name in student]
    for name, unit in [(one, "ms an image") for one in of_time[:1]] or [("multiply_adds", "multiply-adds")]:
        if student.get(name, 0) > 1.05 * teacher.get(name, float("inf")):  # latencies vary by some percent
            shown = [f"{one[name]:,.3f}" if name in of_time else f"{one[name]:,}" for one in (student, teacher)]
            text = f"The student is slower than its teacher: {shown[0]} against {shown[1]} {unit}."
            return [*found, Remark("slower student", text, flag)]
    return found


def few_images(split: str, count: int, accuracy: float) -> list[Remark]:
    """Return a split with so few images that its accuracy says little; none for an empty split.

    Args:
        split: Its name.
        count: Number of images.
        accuracy: The student's accuracy on them, from 0 to 1.
    """
    if not count:
        return []
    low, high = wilson(accuracy, count)
    if high - low <= WIDE:
        return []
    text = (
        f"There {'is' if count == 1 else 'are'} only {counted(count, f'{split} image')}: an accuracy of "
        f"{percent(accuracy)} would have the 95 % interval {interval(accuracy, count)}."
    )
    return [Remark(f"few {split} images", text, "the data, to have more pictures")]


def overfitting(history: History, validation: int) -> list[Remark]:
    """Return a student that is much better on its training images than on validation.

    Args:
        history: Logs of each epoch.
        validation: Number of validation images; 0 where they were trained on.
    """
    last = history[-1] if history else {}
    if not validation or "val_accuracy" not in last or "accuracy" not in last:
        return []
    train, held_out = last["accuracy"], last["val_accuracy"]
    if train - held_out <= GAP or train <= wilson(held_out, validation)[1]:
        return []
    text = f"The student has overfitted: {percent(train)} of training images against {percent(held_out)} of validation."
    losses = [entry["val_loss"] for entry in history if "val_loss" in entry]
    if losses and losses[-1] > 1.1 * min(losses):
        text += f" Its validation loss was lowest after epoch {losses.index(min(losses)) + 1} of {len(history)}."
    return [Remark("overfitting", text, "--training.epochs, --training.weight_decay, --augment.crop_padding")]


def idle_terms(ledger: Sequence[Mapping[str, Any]], hard: str) -> list[Remark]:
    """Return loss terms that never had one percent of the gradient.

    Args:
        ledger: Its entries.
        hard: The option that sets the weight of the hard label.
    """
    found = []
    for name in inert_terms([dict(entry) for entry in ledger]):
        term = name.removesuffix("_loss")
        text = f"The loss term {term} has no effect: it never had 1 % of the gradient."
        found.append(Remark("idle term", text, hard if name == HARD else f"--losses.{term}.weight"))
    return found


def idle_overlays(errors: Sequence[float], tolerance: float) -> list[Remark]:
    """Return overlays that hardly happen, because most maps are not complete enough to be overlaid.

    Args:
        errors: Completeness error of each map.
        tolerance: Error up to which a map is overlaid.
    """
    if not len(errors):
        return []
    usable = sum(bool(error <= tolerance) for error in errors) / len(errors)
    if usable >= FEW_MAPS:
        return []
    text = (
        f"Overlays have little effect: {percent(usable)} of {counted(len(errors), 'map')} are within the tolerance of "
        f"{tolerance:g}, and the others are never overlaid."
    )
    return [Remark("idle overlays", text, "--attribution.max_steps, --attribution.tolerance")]


def _least_loss(lost: float, apart: float, count: int) -> float:
    """Return the lower end of the 95 % interval of a net loss of accuracy on the same images.

    Only images with two predictions can be lost or gained, so their share bounds the variance of the difference.

    Args:
        lost: Accuracy before, less accuracy after.
        apart: Share of the images whose predictions differ.
        count: Number of images.
    """
    deviation = math.sqrt(max(apart - lost**2, 0.0) / count)
    return lost - float(stats.norm.ppf(1 - LEVEL / 2)) * deviation


def far_files(parity: Mapping[str, Mapping[str, float]]) -> list[Remark]:
    """Return quantized files that predict other classes than their Keras model.

    Args:
        parity: File to its report, with `agreement`, `accuracy`, `keras_accuracy` and number of `examples` of
            validation. A file is named only where its interval of 95 % is beyond the bound.
    """
    found = []
    for name, report in parity.items():
        if "examples" not in report:  # of an earlier version
            continue
        count, lost = int(report["examples"]), max(report["keras_accuracy"] - report["accuracy"], 0.0)
        apart = 1 - report["agreement"]
        differs = wilson(report["agreement"], count)[1] < INT8_AGREEMENT or _least_loss(lost, apart, count) > INT8_LOSS
        if format_of(name) in QUANTIZED and differs:
            text = (
                f"{name} is far from its Keras model: the same class for {percent(report['agreement'])} of "
                f"{counted(count, 'validation image')}, accuracy {percent(report['accuracy'])} against "
                f"{percent(report['keras_accuracy'])}."
            )
            found.append(Remark("far file", text, "--export.calibration_examples, --compress.method qat"))
    return found
