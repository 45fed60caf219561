"""What compress and export would refuse hours later, found before the first step of training."""

from collections.abc import Collection

from tfigkd.compress.methods import check_compressible
from tfigkd.config.experiment import Config, fine_tuning
from tfigkd.edge.convert import OperationError, check_convertible
from tfigkd.models.fold import fold_batch_norm
from tfigkd.models.layers import with_stock_layers
from tfigkd.runtime.errors import UserError
from tfigkd.stages.data import dataset
from tfigkd.stages.distill import assemble, untrained_student
from tfigkd.stages.teacher import build_teacher


def check_ahead(config: Config, stages: Collection[str]) -> None:
    """Check that the untrained student can be compressed and exported as a config asks.

    Whether a file is near enough to its model depends on the trained weights and is known only afterwards. The
    networks of this package convert to every format; only a user's own network is tried.

    Args:
        config: The run's.
        stages: Those that will run.

    Raises:
        UserError: the method does not support the student, or LiteRT lacks one of its operations.
    """
    compresses = "compress" in stages and config.compress.method != "none"
    network = config.teacher.model if config.student.init == "teacher" else config.student.model
    converts = "export" in stages and network.endswith(".keras")
    if not (compresses or converts):
        return
    data = dataset(config.data)
    student = with_stock_layers(untrained_student(config, data))
    if compresses:
        check_compressible(student, config.compress)
        own = config.compress.teacher == "student"
        assemble(fine_tuning(config), student, fold_batch_norm(student) if own else build_teacher(config, data))
    if converts:
        try:
            check_convertible(student, config.export.formats)
        except OperationError as error:
            raise UserError(f"the student {network}: {error}; choose other --export.formats") from error
