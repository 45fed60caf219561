"""The stages, in order."""

from collections.abc import Callable

from tfigkd.benchmark import benchmark
from tfigkd.config.compress_fields import trainings
from tfigkd.config.fields import Config
from tfigkd.runtime.files import Workdir
from tfigkd.stages.compress import compress
from tfigkd.stages.data import prepare
from tfigkd.stages.distill import distill
from tfigkd.stages.evaluate import evaluate
from tfigkd.stages.export import export
from tfigkd.stages.report import report
from tfigkd.stages.teacher import train_teacher
from tfigkd.store.maps import build_overlays
from tfigkd.store.views import build_views

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
