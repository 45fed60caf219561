"""What a run costs on n workers: time, memory, disk and network of every stage.

Sizes follow from the formats of stores and checkpoints. Times are measured on this machine (`estimate.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfigkd.batches.threads import batch_threads
from tfigkd.config.experiment import Config
from tfigkd.data.disk import DiskPictures
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.stages.data import dataset, stored_examples, training_examples
from tfigkd.stages.estimate import seconds_of_stages, typical_gradients
from tfigkd.stages.networks import build_network
from tfigkd.stages.teacher import build_teacher
from tfigkd.stages.workdir import Workdir
from tfigkd.training import checkpoint

PROCESS = 1.2e9
"""Bytes of a process that has imported TensorFlow and holds two small networks."""
RECORD = 180
"""Bytes of a record beside its arrays: id, store, label, scale, error, steps and the framing."""
BYTES_KEPT = 4.0 * (1 + checkpoint.KEPT * 3)
"""Bytes kept for each parameter: the model once, and the checkpoints, each of the parameter and two moments."""


@dataclass(frozen=True)
class Job:
    """What a run computes and keeps, in numbers.

    Attributes:
        train: Images that train.
        stored: Images whose maps and logits are stored.
        pixels: Pixels of an image.
        teacher: Multiply-adds of the teacher for an image, and its parameters.
        student: The same of the student.
        teacher_epochs: 0 for a teacher that is given.
        epochs: Of the student.
        gradients: Gradients for the map of an image; 0 without maps.
        views: Stored views of an image; 0 without them.
        cells: Values of a stored map.
        image_logits: Bytes of an image's stored logits.
        view_logits: Bytes of a view's stored logits.
        live: Whether the teacher runs in every step.
        in_memory: Whether pictures, maps and views are held in memory; else they are read from disk.
        ahead: Images of the batches that threads make ahead of the student's training.
    """

    train: int
    stored: int
    pixels: int
    teacher: tuple[float, int]
    student: tuple[float, int]
    teacher_epochs: int
    epochs: int
    gradients: float
    views: int
    cells: int
    image_logits: int
    view_logits: int
    live: bool = False
    in_memory: bool = False
    ahead: int = 0

    @property
    def map_bytes(self) -> int:
        """Bytes of the store of maps."""
        return self.stored * (self.cells + self.image_logits + RECORD) if self.gradients else 0

    @property
    def view_bytes(self) -> int:
        """Bytes of the store of views."""
        return self.stored * (self.views * self.view_logits + RECORD) if self.views else 0

    @property
    def picture_bytes(self) -> int:
        """Bytes of the decoded pictures that train."""
        return 3 * self.pixels * self.train

    @property
    def batch_bytes(self) -> int:
        """Bytes of the batches ahead: float32, of which a live teacher sees images without overlays."""
        return 4 * 3 * self.pixels * self.ahead * (1 + self.live)


@dataclass(frozen=True)
class Cost:
    """The cost of one stage.

    Attributes:
        seconds: From its start to its end.
        memory: Bytes of the process that needs most.
        disk: Bytes that it writes.
        network: Bytes that cross the network between the machines and the disk that they share.
    """

    seconds: float
    memory: float
    disk: float
    network: float


def job_of(config: Config) -> Job:
    """Return the numbers of a config."""
    data, recipe = dataset(config.data), config.teacher.training
    teacher = build_teacher(config, data) if config.needs_teacher else None
    student = build_network(config.student, data)
    height, width = data.image_shape[:2]
    top, grid = config.view.top_logits, config.attribution.grid
    packed = None if top is None else 2 * (2 * top + 2)
    threads = batch_threads(config.training)
    return Job(
        train=len(training_examples(config.data)),
        stored=len(stored_examples(config.data)),
        pixels=height * width,
        teacher=(0.0, 0) if teacher is None else (multiply_adds(teacher), count_parameters(teacher)),
        student=(multiply_adds(student), count_parameters(student)),
        teacher_epochs=recipe.epochs * config.teacher.count if teacher is not None and config.teacher.trained else 0,
        epochs=config.training.epochs,
        gradients=typical_gradients(config.attribution) if config.needs_store else 0,
        views=config.view.views if config.needs_views else 0,
        cells=height * width if grid is None else grid * grid,
        image_logits=packed or 4 * data.num_classes,
        view_logits=packed or 2 * data.num_classes,
        live=config.needs_live_teacher,
        in_memory=not isinstance(data.train.images, DiskPictures),
        ahead=config.training.batch_size * (threads + 1) if threads > 1 else 0,
    )


def costs(job: Job, seconds: Mapping[str, float], *, machines: int = 1) -> dict[str, Cost]:
    """Return the cost of each stage of which the seconds are given.

    Args:
        job: What the run computes.
        seconds: Stage to its seconds on all these machines.
        machines: How many share a disk.
    """
    held = job.picture_bytes if job.in_memory else 0
    maps = job.train * (job.image_logits + (job.cells if job.in_memory else 0)) if job.gradients else 0
    views = job.train * job.views * job.view_logits if job.in_memory else 0
    stores = job.map_bytes + job.view_bytes
    shared = machines > 1
    found = {}
    for stage, time in seconds.items():
        memory, disk, network = PROCESS, 0.0, 0.0
        if stage == "teacher" and job.teacher_epochs:
            memory, disk = memory + held, BYTES_KEPT * job.teacher[1]
        elif stage == "overlays":
            memory, disk = memory + held, float(stores)
            passes = (job.gradients > 0) + (job.views > 0)
            network = shared * (passes * 3.0 * job.pixels * job.stored + stores + machines * 4.0 * job.teacher[1])
        elif stage == "distill":
            memory, disk = memory + held + maps + views + job.batch_bytes, BYTES_KEPT * job.student[1]
            read = 3.0 * job.pixels + (job.cells if job.gradients else 0) + job.views * job.view_logits
            network = shared * read * job.train * (1 if job.in_memory else job.epochs)
        found[stage] = Cost(time, memory, disk, network)
    return found


def measured_costs(config: Config, workdir: Workdir, stages: Sequence[str], workers: int) -> dict[str, Cost]:
    """Return the costs of a config's stages on so many machines like this one; they share only the stores."""
    seconds = seconds_of_stages(config, workdir, list(stages))
    if "overlays" in seconds:
        seconds["overlays"] /= workers
    return costs(job_of(config), seconds, machines=workers)


def size(count: float) -> str:
    """Return bytes in words, such as "3.4 GB"; nothing for none."""
    if not count:
        return ""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{math.ceil(count / 1e3)} kB"


def duration(seconds: float) -> str:
    """Return a time in words, such as "2 d 5 h" or "3 min 20 s"."""
    whole = round(seconds)
    for factor, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= factor:
            return f"{whole // factor} {unit} {whole % factor // part} {smaller}"
    return f"{whole} s"


def lines(found: Mapping[str, Cost]) -> list[list[str]]:
    """Return a row for each stage: its name, time, memory, disk and network."""
    return [
        [stage, duration(cost.seconds), size(cost.memory), size(cost.disk), size(cost.network)]
        for stage, cost in found.items()
    ]
