"""What ImageNet-1k costs at assumed rates, as the table in experiments/README.md; nothing is run or measured.

python experiments/benchmarks/imagenet_cost.py --teacher-rate 30e12
"""

import argparse
from collections.abc import Iterator

from tfigkd.runtime import console
from tfigkd.stages.cost import Job, Rates, costs, lines, seconds_by_rates

MACHINES = {"one GPU": (1, 1), "eight GPUs": (8, 1), "64 hosts of eight GPUs": (8, 64)}
"""What is compared: devices of a machine, and machines."""
HEADER = ["machines", "stage", "time", "memory", "disk", "network"]


def job(views: int = 16, gradients: float = 35, epochs: int = 100) -> Job:
    """Return ResNet-50 to MobileNet-V2 at 224 pixels; maps on a grid of 56, 20 logits a view."""
    return Job(
        train=1_281_167,
        stored=1_281_167,
        pixels=224 * 224,
        classes=1000,
        teacher=(4.1e9, 25_557_032),
        student=(0.30e9, 3_504_872),
        teacher_epochs=0,
        epochs=epochs,
        gradients=gradients,
        views=views,
        cells=56 * 56,
        logits=(84, 84),
        ahead=9 * 256,
    )


def rows(
    teacher: float = 30e12, student: float = 4e12, pictures: float = 15_000, batches: float = 1000, threads: int = 8
) -> Iterator:
    """Yield the rows of the table at given rates; see `tfigkd.stages.cost.Rates`."""
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
