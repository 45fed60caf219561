"""The stages, in order."""

from collections.abc import Callable

from tfigkd.config.experiment import Config
from tfigkd.stages.benchmark import benchmark
from tfigkd.stages.compress import compress
from tfigkd.stages.data import prepare
from tfigkd.stages.distill import distill
from tfigkd.stages.evaluate import evaluate
from tfigkd.stages.export import export
from tfigkd.stages.overlays import store_knowledge
from tfigkd.stages.report import report
from tfigkd.stages.teacher import train_teacher
from tfigkd.stages.workdir import Workdir

Stage = Callable[[Config, Workdir], None]


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
