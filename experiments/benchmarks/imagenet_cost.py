"""What ImageNet-1k costs at assumed rates, as the table in experiments/README.md; nothing is run or measured.

Times follow from rates that are given, for machines that are not at hand; see `Rates`.

python experiments/benchmarks/imagenet_cost.py --teacher-rate 30e12
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from tfigkd.runtime import console
from tfigkd.stages.cost import Job, costs, lines
from tfigkd.stages.estimate import BACKWARD

INPUT_GRADIENT = 2
"""Multiply-adds of the gradient of the input, as a multiple of those of a forward pass."""
MACHINES = {"one GPU": (1, 1), "eight GPUs": (8, 1), "64 hosts of eight GPUs": (8, 64)}
"""What is compared: devices of a machine, and machines."""
HEADER = ["machines", "stage", "time", "memory", "disk", "network"]


@dataclass(frozen=True)
class Rates:
    """What machines are assumed to do.

    Attributes:
        teacher: Multiply-adds a second of the teacher on one device.
        student: Multiply-adds a second of the student on one device, which are fewer for a small network.
        pictures: Decoded pictures a second that one process reads.
        batches: Images a second that one thread crops and overlays.
        threads: Threads that do so in a process: a training has one process, a store one for each device.
        devices: Devices of a machine.
    """

    teacher: float
    student: float
    pictures: float
    batches: float
    devices: int
    threads: int = 1


def job(views: int = 16, gradients: float = 35, epochs: int = 100) -> Job:
    """Return ResNet-50 to MobileNet-V2 at 224 pixels; maps on a grid of 56, 20 logits a view."""
    return Job(
        train=1_281_167,
        stored=1_281_167,
        pixels=224 * 224,
        teacher=(4.1e9, 25_557_032),
        student=(0.30e9, 3_504_872),
        teacher_epochs=0,
        epochs=epochs,
        gradients=gradients,
        views=views,
        cells=56 * 56,
        image_logits=84,
        view_logits=84,
        ahead=9 * 256,
    )


def seconds_by_rates(job: Job, rates: Rates, machines: int) -> dict[str, float]:
    """Return the seconds of the stages at given rates; a training has the devices of one machine."""
    macs, own = job.teacher[0], job.student[0]
    all_devices = rates.devices * machines
    taught = BACKWARD * macs * job.train * job.teacher_epochs / (rates.devices * rates.teacher)
    maps = INPUT_GRADIENT * macs * job.gradients * job.stored / (all_devices * rates.teacher)
    views = macs * job.views * job.stored / (all_devices * rates.teacher)
    batch = 1 / (rates.batches * rates.threads)
    made = job.views * job.stored * batch / all_devices  # a process for each device, which crops the views
    step = BACKWARD * own / rates.student + (macs / rates.teacher if job.live else 0)
    trained = job.train * job.epochs * max(step / rates.devices, batch)
    teacher = max(taught, job.train * job.teacher_epochs * batch)
    read = job.stored / (rates.pictures * all_devices)
    overlays = max(maps, read) * (job.gradients > 0) + max(views, made) * (job.views > 0)
    return {"teacher": teacher, "overlays": overlays, "distill": trained}


def rows(
    teacher: float = 30e12, student: float = 4e12, pictures: float = 15_000, batches: float = 1000, threads: int = 8
) -> Iterator:
    """Yield the rows of the table at given rates; see `Rates`."""
    for name, (devices, machines) in MACHINES.items():
        rates = Rates(teacher, student, pictures, batches, devices, threads)
        found = costs(job(), seconds_by_rates(job(), rates, machines), machines=machines)
        for line in lines({stage: cost for stage, cost in found.items() if cost.seconds}):
            yield [name, *line]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher-rate", type=float, default=30e12, help="its multiply-adds a second on one GPU")
    parser.add_argument("--student-rate", type=float, default=4e12, help="the same of the student")
    parser.add_argument("--pictures", type=float, default=15_000, help="decoded pictures a second from the disk")
    parser.add_argument("--batches", type=float, default=1000, help="images a second that a thread crops")
    parser.add_argument("--threads", type=int, default=8, help="threads that crop for a training")
    options = parser.parse_args()
    found = rows(options.teacher_rate, options.student_rate, options.pictures, options.batches, options.threads)
    console.show_columns(HEADER, list(found), 4)


if __name__ == "__main__":
    main()
