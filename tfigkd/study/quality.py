"""What changes besides accuracy in a study: calibration, agreement with the teacher, and the students' maps."""

from collections.abc import Sequence
from dataclasses import dataclass

from tfigkd.measure.statistics import summarize
from tfigkd.study.plan import Study, title_of
from tfigkd.study.protocol import Row

TITLE = "Besides accuracy, on test: means and standard deviations of the runs, without a test of their differences"


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: Its header.
        metric: What follows the role in the name of the rows' column, such as `student_nll`.
        factor: What a row's value is multiplied by.
        digits: Decimal places.
        chance: Metric of the value that is expected by chance, shown in brackets.
        minus: Metric that is subtracted from it, run by run.
    """

    title: str
    metric: str
    factor: float
    digits: int
    chance: str = ""
    minus: str = ""


COLUMNS = (
    Column("negative log-likelihood", "nll", 1, 3),
    Column("calibration error (ECE), %", "ece", 100, 1),
    Column("agreement with the teacher, %", "agreement", 100, 2),
    Column(
        "rank correlation with the teacher's maps (with those of other images)",
        "attribution_rank_correlation",
        1,
        3,
        chance="attribution_rank_correlation_chance",
    ),
    Column("insertion AUC", "attribution_insertion", 1, 3),
    Column("deletion AUC", "attribution_deletion", 1, 3),
    Column("insertion − deletion (higher is better)", "attribution_insertion", 1, 3, minus="attribution_deletion"),
)


def quality_lines(study: Study, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]] | None:
    """Return header and lines, one for each arm and size; None where no run was evaluated on test."""
    shown = [column for column in COLUMNS if _values(study.role, rows, column.metric, column.minus)]
    if not shown:
        return None
    lines = []
    for size in study.sizes:
        alike = [row for row in rows if row["size"] == size]
        several = len({row["evaluation"] for row in alike if row.get("evaluation")}) > 1
        for arm in study.arms:
            own = [row for row in alike if row["arm"] == arm]
            if own:
                cells = (
                    _cell(study.role, own, column, several and column.metric.startswith("attribution"))
                    for column in shown
                )
                lines.append([title_of(arm, size), str(len(own)), *cells])
    return ["arm", "n", *(column.title for column in shown)], lines


def _values(role: str, rows: Sequence[Row], metric: str, minus: str = "") -> list[float]:
    """Return a metric of the rows that have it, less another one of the same run where one is named."""
    if not metric:
        return []
    columns = [f"{role}_{name}" for name in (metric, minus) if name]
    values = [[float(row[column]) for column in columns] for row in rows if all(row.get(column) for column in columns)]
    return [first - sum(less) for first, *less in values]


def _cell(role: str, rows: Sequence[Row], column: Column, several: bool) -> str:
    """Return the mean, with the deviation of two runs or more, and the mean by chance; a dash without any value.

    Args:
        role: Whose figures, `student` or `compressed`.
        rows: Of one arm and size.
        column: What is shown.
        several: Whether the arms of this size were measured in several ways, so that their values do not compare.
    """

    def said(value: float) -> str:
        return f"{column.factor * value:.{column.digits}f}".replace("-", "−")

    if several:
        return "measured in several ways"
    values, by_chance = _values(role, rows, column.metric, column.minus), _values(role, rows, column.chance)
    if not values:
        return "–"
    found = summarize(values)
    spread = f" ± {said(found.deviation)}" if found.n > 1 else ""
    some = f", n = {found.n}" if found.n < len(rows) else ""
    return f"{said(found.mean)}{spread}{some}" + (f" ({said(summarize(by_chance).mean)})" if by_chance else "")
