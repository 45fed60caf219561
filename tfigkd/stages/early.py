"""What is known of a run before its first step, and would otherwise be said at its end."""

from tfigkd.config.experiment import Config
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.report.verdict import Remark, few_images, sizes
from tfigkd.stages.data import dataset, holds_out_validation
from tfigkd.stages.teacher import build_network, build_teacher

GOOD_ACCURACY = 0.97
"""The accuracy for which the width of an interval is stated before any accuracy is known."""


def early_remarks(config: Config) -> list[Remark]:
    """Return what is wrong with the sizes of networks and splits of a config, before anything is trained."""
    data, found = dataset(config.data), []
    if config.needs_teacher:
        networks = {"teacher": build_teacher(config, data), "student": build_network(config.student, data)}
        if config.student.init != "teacher":  # such a student has the teacher's own blocks
            found += sizes(
                {
                    role: {"parameters": count_parameters(model), "multiply_adds": multiply_adds(model)}
                    for role, model in networks.items()
                }
            )
    found += few_images("test", len(data.test), GOOD_ACCURACY)
    held_out = len(data.validation) if holds_out_validation(config.data) else 0
    return found + few_images("validation", held_out, GOOD_ACCURACY)
