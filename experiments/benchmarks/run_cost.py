"""What `--estimate` foretells beside what a run takes, its maps on one and on two Ray workers of one core each."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.benchmarks.harness import Options, record
from tfigkd.config.experiment import Config, override
from tfigkd.config.toml import to_toml

TEACHER = Path(__file__).parents[2] / "saved_models" / "cifar10_kd" / "0" / "student.keras"
ONE_CORE = ("env", "TF_NUM_INTRAOP_THREADS=1", "TF_NUM_INTEROP_THREADS=1", "OMP_NUM_THREADS=1")
"""Each Ray worker has one core as well."""


def settings(options: Options) -> Config:
    """Return an experiment whose maps take minutes: a tenth of CIFAR-10, explained by a ResNet-20."""
    changes = {
        "data.name": "digits" if options.tiny else "cifar10",
        "data.train_fraction": 0.1,
        "data.stored": "training",
        "teacher.model": str(TEACHER),
        "teacher.normalization": "none",
        "student.model": "resnet8",
        "student.drop_blocks": 0,
        "training.epochs": 1 if options.tiny else 12,
        "losses.kd.weight": 0.5,
        "overlay.probability": 0.1,
        "attribution.shard_size": 64 if options.tiny else 256,
    }
    if options.tiny:
        changes |= {"teacher.model": "resnet8", "teacher.training.epochs": 1, "attribution.n_steps": 1}
    else:
        changes["data.dir"] = str(options.data_dir.resolve())
    return override(Config(), changes)


def command(folder: Path, name: str, *words: str, cores: int = 1) -> list[str]:
    """Return the command of a run that has so many cores."""
    teachers = folder / f"{name}-teachers"
    own = [sys.executable, "-m", "tfigkd.run", "--experiment", str(folder / "cost.toml")]
    own += ["--workdir", str(folder / name), "--teachers", str(teachers), *words]
    some = sorted(os.sched_getaffinity(0))[:cores]
    return ["taskset", "--cpu-list", ",".join(map(str, some)), *ONE_CORE, *own]


def timed(words: list[str]) -> float:
    """Run a command and return its seconds."""
    begin = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - begin


def foretold(words: list[str], stage: str) -> float:
    """Return the seconds of a stage that `--estimate` prints."""
    done = subprocess.run([*words, "--estimate"], capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.split()[:1] == [stage])
    parts = re.findall(r"(\d+) (d|h|min|s)\b", line)
    return float(sum(int(count) * {"d": 86400, "h": 3600, "min": 60, "s": 1}[unit] for count, unit in parts))


def run(options: Options) -> None:
    """Measure and append rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cost.toml").write_text(to_toml(settings(options), "a run whose time is foretold"))
        stages = ("data", "teacher", "overlays", "distill", "evaluate")
        seen: dict[str, tuple[float, float]] = {}
        for stage in stages:
            words = command(folder, "alone", "--stages", stage)
            cluster = ["--cluster", "auto"] if stage == "overlays" else []
            seen[stage] = foretold(words, stage), timed([*words, *cluster])
        timed(command(folder, "shared", "--stages", "data,teacher"))
        words = command(folder, "shared", "--stages", "overlays", cores=2)
        seen["overlays on two workers"] = (
            foretold([*words, "--workers", "2"], "overlays"),
            timed([*words, "--cluster", "auto"]),
        )
    whole = [sum(seen[stage][side] for stage in stages) for side in (0, 1)]
    seen["all stages"] = whole[0], whole[1]
    for stage in ("overlays", "overlays on two workers", "distill", "evaluate", "all stages"):
        guess, real = seen[stage]
        record(
            options,
            f"time of {stage}, as --estimate foretells it",
            "measured",
            np.array([max(guess / real, real / guess)]),
            ours=guess,
            theirs=real,
            unit="s",
            at_most=1.2,
            note="the larger over the smaller; a tenth of CIFAR-10 explained by ResNet-20, one core a worker",
        )
    ours, theirs = seen["overlays on two workers"][1], seen["overlays"][1]
    record(
        options,
        "time of the maps on two Ray workers of one core",
        "one Ray worker of one core",
        np.array([ours / theirs]),
        ours=ours,
        theirs=theirs,
        unit="s",
        at_most=0.6,
        note="the whole command, with the start of Ray",
    )
