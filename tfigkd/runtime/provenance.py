"""Provenance of results: versions, hardware, commit and command."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tfigkd.runtime.machine import cores
from tfigkd.runtime.quiet import quiet_stderr

COMMIT = "TFIGKD_COMMIT"  # the environment variable that names the commit of a copy
PACKAGES = ("tensorflow", "keras", "jax", "numpy", "ai-edge-litert")


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """Return the versions of Python and of the packages that affect the results, as one line."""
    found = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(found)


def accelerator() -> str:
    """Return the name of the accelerator that Keras uses; empty without one, or if Keras is not imported yet."""
    keras, jax, tensorflow = (sys.modules.get(name) for name in ("keras", "jax", "tensorflow"))
    backend = keras.backend.backend() if keras is not None else ""
    # only what is imported already: importing the other library would reserve device memory for it
    if backend == "jax" and jax is not None:
        device = jax.devices()[0]
        return "" if device.platform == "cpu" else device.device_kind
    if backend == "tensorflow" and tensorflow is not None:
        with quiet_stderr():  # CUDA's libraries print errors on a machine without a device
            devices = tensorflow.config.list_physical_devices("GPU")
        if devices:
            return tensorflow.config.experimental.get_device_details(devices[0]).get("device_name", "GPU")
    return ""


def hardware() -> str:
    """Return the processor model, the number of cores this process may use, and the accelerator in use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return ", ".join(part for part in (model, f"{cores()} cores", accelerator()) if part)


def commit() -> str:
    """Return the commit of the checkout, followed by "+changes" if files differ from it.

    $TFIGKD_COMMIT comes first: it names the commit of a copy. Outside a checkout without it this is empty.
    """
    if os.environ.get(COMMIT):
        return os.environ[COMMIT]
    here = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        # without a lock of its index, which a killed process would leave behind
        command = ["git", "--no-optional-locks", "-C", str(here), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # only a checkout of this project counts, not another repository that contains an installed copy
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return ""
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def surroundings() -> dict[str, str]:
    """Return the provenance columns of a row that say where it was made: versions, hardware and commit."""
    return {"versions": versions(), "hardware": hardware(), "commit": commit()}


def origin(command: str) -> dict[str, str]:
    """Return all provenance columns of a row: versions, hardware, commit and command."""
    return {**surroundings(), "command": command}
