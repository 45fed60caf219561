"""Tables, sentences and a forest plot of a study, computed from its collected rows.

`python -m tfigkd.study report` writes them to the part of experiments/README.md between its two marker lines.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tfigkd.measure import statistics
from tfigkd.measure.statistics import (
    FEWEST,
    LEVEL,
    Difference,
    Summary,
    compare_by_seed,
    holm,
    normality,
    seeds_between,
    winner,
)
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic
from tfigkd.runtime.text import counted, markdown_table
from tfigkd.study.plan import Study, title_of
from tfigkd.study.protocol import Row, refuse_mixed, remarks
from tfigkd.study.quality import TITLE, quality_lines

TO_SEE = (0.2, 0.4)  # differences to detect, in points
CONTROLS = ("shuffled", "noise", "dimmed")
"""Suffixes of the names of placebo arms."""
METRICS = {"test": "student_accuracy", "validation": "validation_accuracy", "compressed": "compressed_accuracy"}
"""The column of a row that a study is judged by."""
COSTS = (
    ("parameters that training adds", "extra_parameters", 1.0, 0),
    ("training step, ms", "step_ms", 1.0, 1),
    ("zeros in the compressed kernels, %", "compressed_prunable_sparsity", 100.0, 1),
)
"""Columns of the table of arms that are shown where rows have them: title, column of a row, factor and digits."""

Runs = dict[tuple[str, str], dict[int, float]]  # (size, arm) to seed to accuracy in points


@dataclass(frozen=True)
class Compared:
    """One planned comparison.

    Attributes:
        size: The size at which the arms are compared.
        first: An arm.
        second: The arm that is subtracted.
        leading: The comparison in pairs of the same seed; Welch's if too few seeds are common.
        welch: Welch's comparison, which ignores the seeds.
        adjusted: p of `leading` after Holm's correction over all planned comparisons.
        planned: How many these are.
    """

    size: str
    first: str
    second: str
    leading: Difference
    welch: Difference
    adjusted: float
    planned: int

    @property
    def title(self) -> str:
        """The two arms and the size."""
        return f"{self.first} − {self.second}{f', {self.size}' if self.size else ''}"


def runs_of(rows: Sequence[Row], judged_on: str = "test") -> Runs:
    """Return the accuracy in points of each run, on a split of `METRICS`.

    Raises:
        UserError: runs of one arm are of several configs or numbers of training examples, so that a mean would mix
            protocols; or two rows of one run differ.
    """
    if rows:
        keep = "keep one kind of rows: collect again with --replace, or write another table with --into"
        refuse_mixed(rows, rows[0]["study"], keep)
    if judged_on == "compressed":
        _refuse_other_compression(rows)
    runs: Runs = defaultdict(dict)
    trained: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        key, seed, judged = (row["size"], row["arm"]), int(row["seed"]), row.get(METRICS[judged_on])
        if not judged:
            raise UserError(
                f"{row['study']}: {row['arm']}, seed {seed}, has no {METRICS[judged_on]}; run its missing stages, or "
                "remove its row"
            )
        accuracy = 100 * float(judged)
        if runs[key].setdefault(seed, accuracy) != accuracy:
            raise UserError(f"{row['study']}: two rows of {row['arm']}, seed {seed}, differ; keep one of them")
        trained[key].add(row["n_train"])
        if len(trained[key]) > 1:
            counts = ", ".join(sorted(trained[key]))
            raise UserError(f"{row['study']}: runs of {row['arm']} trained on {counts} examples; keep one kind of rows")
    return dict(runs)


def _refuse_other_compression(rows: Sequence[Row]) -> None:
    """Refuse runs of one arm that were compressed in several ways, which their column `protocol` does not tell."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        # rows of earlier versions do not have their settings; the zeros of two seeds differ by a few
        sparsity = row.get("compressed_sparsity") or "0"
        zeros = f"{100 * float(sparsity):.1f} % zeros"
        how = f"{row.get('compressed_method', '')}, {row.get('compressed_settings') or zeros}"
        found[row["size"], row["arm"]].add(how)
        if len(found[row["size"], row["arm"]]) > 1:
            kinds = "; ".join(sorted(found[row["size"], row["arm"]]))
            raise UserError(
                f"{row['study']}: runs of {title_of(row['arm'], row['size'])} are compressed in several ways "
                f"({kinds}); run them again with one setting"
            )


def summarize(accuracies: Sequence[float]) -> Summary:
    """Describe the runs of one arm, in points; the interval ends at 0 and 100, which that of few runs can exceed."""
    found = statistics.summarize(accuracies)
    if math.isnan(found.low):
        return found
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 100.0))


def column_mean(rows: Sequence[Row], column: str) -> float | None:
    """Return the mean of a column over the rows that have it; None without any."""
    values = [float(row[column]) for row in rows if row.get(column)]
    return sum(values) / len(values) if values else None


def compare(study: Study, runs: Runs) -> list[Compared]:
    """Return the planned comparisons with runs of both arms; Holm's correction covers all that were planned."""
    found = []
    for size in study.sizes:
        for first, second in study.comparisons:
            a, b = runs.get((size, first), {}), runs.get((size, second), {})
            if a and b:
                found.append((size, first, second, compare_by_seed(a, b)))
    planned = len(study.sizes) * len(study.comparisons)
    adjusted = holm([one.leading.p for *_, one in found], planned)
    return [
        Compared(size, first, second, one.leading, one.welch, p, planned)
        for (size, first, second, one), p in zip(found, adjusted, strict=True)
    ]


def _number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 1e-3 else f"{value:.3f}"


def _interval(low: float, high: float, *, sign: bool = False) -> str:
    return "–" if math.isnan(low) else f"{_number(low, sign=sign)} to {_number(high, sign=sign)}"


def arms_table(study: Study, rows: Sequence[Row], papers: Sequence[Row]) -> list[str]:
    """Return one row for each arm and size; an arm is bold only if it is significantly better than all others."""
    header, lines, remarks = arms_lines(study, rows, papers)
    return [*markdown_table(header, lines), *(["", remarks] if remarks else [])]


def arms_lines(study: Study, rows: Sequence[Row], papers: Sequence[Row]) -> tuple[list[str], list[list[str]], str]:
    """Return header and lines of the table of arms, and remarks to print below it."""
    runs, lines, remarks = runs_of(rows, study.judged_on), [], []
    published = {(row["size"], row["arm"]): row for row in papers if row["study"] == study.name}
    costs = [cost for cost in COSTS if any(row.get(cost[1]) for row in rows)]
    for size in study.sizes:
        arms = {arm: runs[size, arm] for arm in study.arms if (size, arm) in runs}
        if not arms:
            continue
        best, level = winner(arms) if len(arms) == len(study.arms) else (None, [])
        where = f" at {size}" if size else ""
        if level and len(arms) > 1:
            remarks.append(
                f"No winner{where}: the highest mean, {level[0]}, cannot be told from {', '.join(level[1:])}."
            )
        for arm, values in arms.items():
            own = [row for row in rows if row["size"] == size and row["arm"] == arm]
            summary, paper = summarize(list(values.values())), published.get((size, arm))
            mean, title = _number(summary.mean), title_of(arm, size)
            minutes = sum(float(row["train_seconds"]) for row in own) / len(own) / 60
            lines.append(
                [
                    f"**{title}**" if arm == best else title,
                    str(summary.n),
                    f"**{mean}**" if arm == best else mean,
                    _number(summary.deviation),
                    _interval(summary.low, summary.high),
                    _mean_of(own, f"{study.role}_agreement", 100.0, 2),
                    f"{minutes:.1f}",
                    *(_mean_of(own, column, factor, digits) for _, column, factor, digits in costs),
                    _paper(paper, own[0]),
                ]
            )
    header = ["arm", "n", f"{study.judged_on} accuracy, %", "sd", "95 % interval", "agreement with the teacher, %"]
    header += ["training, minutes", *(title for title, *_ in costs), "papers' mean (sd, n)"]
    if not published:
        header, lines = header[:-1], [line[:-1] for line in lines]
    return header, lines, " ".join([*remarks, *_normality(study, runs)]).strip()


def _mean_of(rows: Sequence[Row], column: str, factor: float, digits: int) -> str:
    """Return the mean of a column, times a factor, as text; a dash without any value."""
    mean = column_mean(rows, column)
    return "–" if mean is None else f"{factor * mean:,.{digits}f}"


def _paper(paper: Row | None, own: Row) -> str:
    """Return the papers' mean as text; empty if the rows have another number of training examples."""
    if paper is None or own["n_train"] != paper["n_train"]:
        return ""
    known = [part for part in (paper["deviation"], paper["n"]) if part]
    return f"{float(paper['mean']):.2f}" + (f" ({', '.join(known)})" if known else "")


def _normality(study: Study, runs: Runs) -> list[str]:
    values = {key: normality(list(own.values())) for key, own in runs.items() if key[0] in study.sizes}
    tested = {key: p for key, p in values.items() if not math.isnan(p)}
    if not tested:
        return []
    odd = [title_of(arm, size) for (size, arm), p in tested.items() if p < LEVEL]
    named = f" ({', '.join(odd)})" if odd else ""
    return [f"Not normally distributed by the Shapiro-Wilk test at 5 %: {len(odd)} of {len(tested)} arms{named}."]


def comparisons_lines(compared: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Return one line for each comparison, with the runs needed to detect differences of 0.2 and 0.4 points."""
    lines = []
    for one in compared:
        leading, welch = one.leading, one.welch
        second = f"{_number(welch.difference, sign=True)}, {_interval(welch.low, welch.high, sign=True)}, {_p(welch.p)}"
        lines.append(
            [
                one.title,
                _number(leading.difference, sign=True),
                _interval(leading.low, leading.high, sign=True),
                _p(leading.p),
                _p(one.adjusted),
                _runs(leading),
                _number(leading.effect, sign=True),
                second if leading.by_pairs else "–",
                *(_needed(leading, points) for points in TO_SEE),
            ]
        )
    header = ["comparison", "difference, points", "95 % interval", "p", "after Holm", "runs", "d (pairs) or g"]
    header += [
        "Welch: difference, 95 % interval, p",
        *(f"runs per arm to show {points} points (95 %)" for points in TO_SEE),
    ]
    return header, lines


def _runs(found: Difference) -> str:
    """Return how many runs or pairs were compared."""
    return f"{found.n[0]} pairs" if found.by_pairs else f"{found.n[0]} and {found.n[1]}"


def _needed(found: Difference, points: float) -> str:
    """Return how many runs per arm, or pairs, a difference needs, with the interval from the deviation's own."""
    if not found.tested:
        return "–"
    counts = (None if count is None else max(count, FEWEST) for count in seeds_between(found, points))
    best, low, high = ("> 100,000" if count is None else f"{count:,}" for count in counts)
    return f"{best} ({low} to {high})"


def sentences(compared: Sequence[Compared]) -> list[str]:
    """Return how many comparisons are beyond the noise, then a sentence for each, those with placebos first."""
    placebo = [one for one in compared if one.second in {f"{one.first}_{control}" for control in CONTROLS}]
    said = [_sentence(one, "its placebo ") for one in placebo]
    said += [_sentence(one) for one in compared if one not in placebo]
    tested = [one for one in compared if not math.isnan(one.adjusted)]
    beyond = sum(one.adjusted < LEVEL for one in tested)
    some = f"{counted(len(tested), 'tested comparison')} {'is' if len(tested) == 1 else 'are'}"
    total = f"{beyond} of {some} beyond the noise after Holm's correction" if tested else ""
    total += f" over the {tested[0].planned} that were planned." if tested else ""
    return [total or "No arm has runs enough for a test.", *said]


def _sentence(one: Compared, kind: str = "") -> str:
    leading, welch = one.leading, one.welch
    start = f"{one.first} against {kind}{one.second}{f' at {one.size}' if one.size else ''}: "
    start += f"{_number(leading.difference, sign=True)} points"
    if not leading.tested:
        return f"{start} ({_runs(leading)}): {too_few(min(leading.n))}."
    how = "paired by seed" if leading.by_pairs else "Welch"
    start += f" ({how}: {_interval(leading.low, leading.high, sign=True)}, p {_p(leading.p)}, "
    start += f"after Holm {_p(one.adjusted)}; {_runs(leading)}"
    if leading.by_pairs and welch.tested:
        start += f"; Welch: {_interval(welch.low, welch.high, sign=True)}, p {_p(welch.p)}"
    if one.adjusted < LEVEL:
        return f"{start}): beyond the noise."
    unit = "pairs" if leading.by_pairs else "seeds per arm"
    return f"{start}): inside the noise. A difference of {TO_SEE[1]} points needs {_needed(leading, TO_SEE[1])} {unit}."


def too_few(runs: int) -> str:
    """Return what so few runs of an arm can say."""
    words = {1: "one run", 2: "two runs"}
    if runs >= FEWEST:  # runs enough, but without any spread
        return "the runs have no spread, so no test"
    return f"{words[runs]} per arm cannot tell; {FEWEST} or more give an interval"


def provenance(rows: Sequence[Row]) -> str:
    """Return hardware, wall time, versions, commits and facts about the splits, in sentences."""

    def distinct(name: str) -> str:
        return "; ".join(sorted({row[name] for row in rows if row.get(name)})) or "unknown"

    minutes = round(sum(float(row["train_seconds"]) for row in rows) / 60)
    text = (
        f"{counted(len(rows), 'run')}, {counted(minutes, 'minute')} of training (wall time, pauses and other work "
        "on the machine included) on "
        f"{distinct('hardware')}; {distinct('n_train')} training images; last epoch, nothing chosen on test. "
    )
    if any(row.get("teacher_saw_validation") == "True" for row in rows):
        text += "The teacher's training saw the validation images. "
    if any(row.get("teacher_saw_validation") == "unknown" for row in rows):
        text += "The teacher was taken as it is: which images it was trained on is not known. "
    return f"{text}Commits {distinct('commit')}; {distinct('versions')}. {remarks(rows)}".strip()


def forest_plot(compared: Sequence[Compared], title: str, path: Path, judged_on: str = "test") -> None:
    """Plot each comparison's difference and 95 % interval; a filled mark is significant after Holm's correction."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [one for one in compared if one.leading.tested]
    if not drawn:
        return
    with matplotlib.rc_context({"svg.hashsalt": title, "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.32 * len(drawn)), layout="constrained")
        for position, one in enumerate(reversed(drawn)):
            leading = one.leading
            errors = [[leading.difference - leading.low], [leading.high - leading.difference]]
            fill = "C0" if one.adjusted < LEVEL else "white"
            axes.errorbar(
                leading.difference,
                position,
                xerr=errors,
                fmt="o",
                color="C0",
                markerfacecolor=fill,
                capsize=3,
                linewidth=1,
            )
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_yticks(range(len(drawn)), [f"{one.title} ({_runs(one.leading)})" for one in reversed(drawn)])
        axes.set_xlabel(
            f"difference of mean {judged_on} accuracy, points, with 95 % interval (filled: p < 0.05 after Holm)"
        )
        axes.set_title(title, loc="left")
        with atomic(path) as temporary:
            figure.savefig(temporary, metadata={"Date": None})
        pyplot.close(figure)


def section(study: Study, rows: Sequence[Row], papers: Sequence[Row]) -> list[str]:
    """Return the section of one study as Markdown lines."""
    compared = compare(study, runs_of(rows, study.judged_on))
    lines = [f"### {study.name}", "", f"{study.description}. {provenance(rows)}", ""]
    lines += [*arms_table(study, rows, papers), ""]
    quality = quality_lines(study, rows)
    if quality:
        lines += [f"{TITLE}:", "", *markdown_table(*quality), ""]
    if compared:
        counted, *said = sentences(compared)
        lines += [*markdown_table(*comparisons_lines(compared)), "", counted, "", *(f"- {one}" for one in said), ""]
    if any(one.leading.tested for one in compared):
        lines += [f"![{study.name}: differences with 95 % intervals](results/{study.name}.svg)", ""]
    return lines


def done_runs(study: Study, rows: Sequence[Row]) -> int:
    """Return how many of the planned runs have a row."""
    seeds = {str(seed) for seed in range(study.seeds)}
    found = {(row["size"], row["arm"], row["seed"]) for row in rows if row["seed"] in seeds}
    return sum(size in study.sizes and arm in study.arms for size, arm, _ in found)
