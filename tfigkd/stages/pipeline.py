"""The stages, in order."""

from collections.abc import Callable

from tfigkd.benchmark import benchmark
from tfigkd.compress.fields import trainings
from tfigkd.compress.stage import compress
from tfigkd.data.stage import prepare
from tfigkd.evaluation import evaluate
from tfigkd.exporting import export
from tfigkd.fields import Config
from tfigkd.overlays import build_overlays
from tfigkd.report.stage import report
from tfigkd.student import distill
from tfigkd.teacher import train_teacher
from tfigkd.views import build_views
from tfigkd.workdir import Workdir

Stage = Callable[[Config, Workdir], None]


def store_knowledge(config: Config, workdir: Workdir) -> None:
    """Stage `overlays`: store what the teacher knows and the student's arm and its fine-tuning ask for."""
    runs = trainings(config)
    if any(each.needs_store for each in runs):
        build_overlays(config, workdir)
    if any(each.needs_views for each in runs):
        build_views(config, workdir)
    for tap in sorted({each.losses.at.teacher_layer for each in runs if each.needs_attention}):
        build_views(config, workdir, tap=tap)


STAGES: dict[str, Stage] = {
    "data": prepare,
    "teacher": train_teacher,
    "overlays": store_knowledge,
    "distill": distill,
    "compress": compress,
    "export": export,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "report": report,
}
