"""What is wrong with a study, in plain words, from its rows; an empty list means that nothing was found."""

import shlex
from collections import defaultdict
from collections.abc import Sequence

from tfigkd.measure.chance import CHANCE_KAPPA
from tfigkd.measure.statistics import FEWEST
from tfigkd.runtime.text import counted, percent
from tfigkd.study.plan import Study, title_of
from tfigkd.study.protocol import Row
from tfigkd.study.tables import CONTROLS, METRICS, column_mean, runs_of


def _different_data(study: Study, rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each size whose runs have several data sets; earlier versions did not write which."""
    found = []
    for size in study.sizes:
        known: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row["size"] == size and row.get("data_fingerprint"):
                known[row["data_fingerprint"]].add(row["arm"])
        if len(known) > 1:
            parts = "; ".join(f"{data} ({', '.join(sorted(arms))})" for data, arms in known.items())
            found.append(
                f"Runs{f' of {size}' if size else ''} have {len(known)} different data sets, so their differences "
                f"are of the data too. By fingerprint: {parts}."
            )
    return found


def _different_flags(study: Study, rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each size whose arms have run with different fields of the command line."""
    found = []
    for size in study.sizes:
        known: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row["size"] == size and row.get("command"):
                known[flags_of(row["command"])].add(row["arm"])
        if len(known) > 1:
            parts = "; ".join(f"{flags or 'none'} ({', '.join(sorted(arms))})" for flags, arms in sorted(known.items()))
            found.append(
                f"Runs{f' of {size}' if size else ''} have different flags, so their differences are of these too: "
                f"{parts}. Run all arms with the same flags."
            )
    return found


def flags_of(command: str) -> str:
    """Return the fields of experiments in the command of a run, as they stand there."""
    words, kept = shlex.split(command), []
    position = 0
    while position < len(words):
        option = words[position].partition("=")[0]
        if "." in option and option.startswith("--"):
            kept.append(words[position])
            while position + 1 < len(words) and not words[position + 1].startswith("--"):
                position += 1
                kept.append(words[position])
        position += 1
    return shlex.join(kept)


def study_verdict(study: Study, rows: Sequence[Row]) -> list[str]:
    """Return one sentence for each thing that is wrong with the arms of a study."""
    found = _different_data(study, rows) + _different_flags(study, rows)
    runs = runs_of(rows, study.judged_on)
    for size, arm in runs:
        own = [row for row in rows if (row["size"], row["arm"]) == (size, arm)]
        title = title_of(arm, size)
        kappa, accuracy, teacher = (
            column_mean(own, name) for name in ("student_kappa", METRICS["test"], "teacher_accuracy")
        )
        # placebos of the logits are meant to be near chance
        if kappa is not None and kappa < CHANCE_KAPPA and not arm.endswith(CONTROLS) and accuracy is not None:
            found.append(
                f"{title} is at chance: {percent(accuracy)}, kappa {kappa:.2f}. "
                "Change: --training.epochs, --training.learning_rate."
            )
        if accuracy is not None and teacher is not None and teacher < accuracy:
            found.append(
                f"The teacher of {title} is worse than its students: {percent(teacher)} against {percent(accuracy)}. "
                "Change: --teacher.model, --teacher.training.epochs."
            )
        student, taught_by = (column_mean(own, f"{role}_parameters") for role in ("student", "teacher"))
        if student is not None and taught_by is not None and student >= taught_by:
            found.append(
                f"The students of {title} are not smaller than their teacher: {student:,.0f} parameters against "
                f"{taught_by:,.0f}. "
                "Change: --student.drop_blocks, --student.width."
            )
    few = sorted({len(own) for own in runs.values() if len(own) < FEWEST})
    if few and study.comparisons:
        counts = " and ".join(counted(count, "run") for count in few)
        found.append(
            f"Arms of {counts} cannot be compared: an interval needs {FEWEST}. "
            + (
                "The same command continues with the runs that are left."
                if study.seeds >= FEWEST
                else f"Change: seeds = {FEWEST} in the study's file."
            )
        )
    return found
