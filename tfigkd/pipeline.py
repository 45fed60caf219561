"""The stages, in order."""

from collections.abc import Callable

from tfigkd.benchmark import benchmark
from tfigkd.data.stage import prepare
from tfigkd.evaluate import evaluate
from tfigkd.export import export
from tfigkd.fields import Config
from tfigkd.overlays import build_overlays
from tfigkd.report import report
from tfigkd.student import distill
from tfigkd.teacher import train_teacher
from tfigkd.workdir import Workdir

Stage = Callable[[Config, Workdir], None]

STAGES: dict[str, Stage] = {
    "data": prepare,
    "teacher": train_teacher,
    "overlays": build_overlays,
    "distill": distill,
    "evaluate": evaluate,
    "export": export,
    "benchmark": benchmark,
    "report": report,
}
