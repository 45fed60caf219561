"""What is wrong with a study, in plain words, from its rows; an empty list means that nothing was found."""

from collections import defaultdict
from collections.abc import Sequence

from tfigkd.measure.chance import CHANCE_KAPPA
from tfigkd.measure.statistics import FEWEST
from tfigkd.runtime.text import counted, percent
from tfigkd.stages.runner import INERT
from tfigkd.study.commands import flags_of
from tfigkd.study.plan import Study, title_of
from tfigkd.study.protocol import Row
from tfigkd.study.tables import CONTROLS, column_mean, runs_of


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
    """Return a sentence for each size whose arms were made with different fields of the command line."""
    found = []
    for size in study.sizes:
        known: dict[frozenset[str], set[str]] = defaultdict(set)
        for row in rows:
            if row["size"] == size and row.get("command"):
                flags = flags_of(row["command"])
                known[frozenset(flags[name] for name in flags if not name.startswith(INERT))].add(row["arm"])
        if len(known) > 1:
            kinds = sorted(
                (", ".join(sorted(flags)) or "none", ", ".join(sorted(arms))) for flags, arms in known.items()
            )
            parts = "; ".join(f"{flags} ({arms})" for flags, arms in kinds)
            found.append(
                f"Runs{f' of {size}' if size else ''} were made with different flags, which may be what their "
                f"differences come from: {parts}. Run all arms with the same flags."
            )
    return found


def study_verdict(study: Study, rows: Sequence[Row]) -> list[str]:
    """Return one sentence for each thing that is wrong with the arms of a study."""
    found = _different_data(study, rows) + _different_flags(study, rows)
    runs = runs_of(rows, study.judged_on)
    for size, arm in runs:
        own = [row for row in rows if (row["size"], row["arm"]) == (size, arm)]
        title = title_of(arm, size)
        kappa, accuracy, teacher = (
            column_mean(own, name) for name in (f"{study.role}_kappa", f"{study.role}_accuracy", "teacher_accuracy")
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
        student, taught_by = (column_mean(own, f"{role}_parameters") for role in (study.role, "teacher"))
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
