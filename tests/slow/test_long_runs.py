"""Long runs in one process: memory stays flat over 200 epochs and over 30 trials.

python -m pytest tests/slow/test_long_runs.py -m slow --long-run-rows experiments/results/long_runs.csv
"""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tfigkd.runtime.provenance import origin
from tfigkd.runtime.rows import append_row

ROOT = Path(__file__).resolve().parents[2]
TINY = """
[data]
name = "digits"
limit = 200
[augment]
crop_padding = 1
flip = false
[teacher]
drop_blocks = 15
width = 0.25
normalization = "none"
[teacher.training]
epochs = 2
[student]
drop_blocks = 16
width = 0.25
[attribution]
max_steps = 16
[overlay]
probability = 0.5
[losses.kd]
weight = 0.5
[ledger]
every = 20
[training]
epochs = {epochs}
batch_size = 16
"""
SETTLED = 0.2  # share of the run in which TensorFlow fills its caches
ALLOWED = {"epochs": 10.0, "trials": 60.0}  # MB of growth over the rest of the run


def resident(pid):
    """Return the resident memory of a process in MB; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else None


def watch(folder, command, done):
    """Run a command; return (value of `done`, MB) at each change of that value."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    lines, samples = [], {}
    with subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=environment, **options) as process:
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        while process.poll() is None:
            number, memory = done(lines), resident(process.pid)
            if number and memory:
                samples.setdefault(number, memory)
            time.sleep(0.05)
        reader.join()
    assert process.returncode == 0, "".join(lines)
    return sorted(samples.items())


def growth(samples, total):
    """Return the growth in MB after the first part, by the Theil-Sen line, which is robust against spikes."""
    from scipy.stats import theilslopes

    settled = [(number, memory) for number, memory in samples if number >= SETTLED * total]
    assert len(settled) >= 8, samples
    numbers, memories = np.array(settled).T
    slope = float(theilslopes(memories, numbers).slope)
    return slope * (total - SETTLED * total), settled


def keep(request, run, unit, samples, total):
    """Check the growth, and append its row if the option names a file."""
    rise, settled = growth(samples, total)
    print(f"{run}: {settled[0][1]:.0f} to {settled[-1][1]:.0f} MB, {rise:+.1f} MB by the fitted line")
    path = request.config.getoption("--long-run-rows", default=None)
    if path is not None:
        row = {"run": run, "first_mb": round(settled[0][1], 1), "last_mb": round(settled[-1][1], 1)}
        row |= {"growth_mb": round(rise, 2), "over": f"{unit} {settled[0][0]} to {settled[-1][0]}"}
        append_row(path, row | {"samples": len(settled)} | origin(f"python -m pytest {request.node.nodeid} -m slow"))
    assert rise < ALLOWED[unit], settled


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_stays_flat_over_200_epochs(tmp_path, request):
    (tmp_path / "tiny.toml").write_text(TINY.format(epochs=200))
    folder = tmp_path / "runs/tiny/0/distill"

    def epochs(lines):
        return max((int(path.stem[-5:]) for path in folder.glob("checkpoint-*.ckpt")), default=0)

    command = ("tfigkd.run", "--experiment", "tiny.toml", "--stages", "data,teacher,overlays,distill")
    keep(request, "student of 200 epochs", "epochs", watch(tmp_path, command, epochs), 200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_stays_flat_over_30_trials(tmp_path, request):
    (tmp_path / "tiny.toml").write_text(TINY.format(epochs=2))

    def trials(lines):
        # without the lines of the list at the end
        return min(30, sum(line.startswith("  trial ") for line in list(lines)))

    varied = ("--vary", "training.learning_rate=1e-3:1e-2:log", "--vary", "losses.kd.weight=0.1:0.9")
    command = ("tfigkd.search", "--experiment", "tiny.toml", "--tuner", "random", "--trials", "30", *varied)
    keep(request, "search of 30 trials", "trials", watch(tmp_path, command, trials), 30)
