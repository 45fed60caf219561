"""Several processes, on one machine or on many, that train one network together. Only JAX joins them.

They are joined by `keras.distribution.initialize`, whose three environment variables say who takes part. Each is given
the same command and does the same work, but for its own part of every batch; only the first one writes. They share the
folders of the run and of the teachers.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.quiet import quiet_stderr

ADDRESSES = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
COUNT = "KERAS_DISTRIBUTION_NUM_PROCESSES"
NUMBER = "KERAS_DISTRIBUTION_PROCESS_ID"
"""The variables that `keras.distribution.initialize` reads."""


def is_asked() -> bool:
    """Return whether the environment asks this process to train with others.

    Raises:
        UserError: The variables do not fit together.
    """
    given = {name: os.environ[name] for name in (ADDRESSES, COUNT, NUMBER) if os.environ.get(name)}
    if not given:
        return False
    for name in (ADDRESSES, COUNT, NUMBER):
        if name not in given:
            raise UserError(f"{' and '.join(given)} given without {name}; give all three or none")
    if not all(given[name].isascii() and given[name].isdigit() for name in (COUNT, NUMBER)):
        raise UserError(f"{COUNT} and {NUMBER} must be whole numbers, got {given[COUNT]!r} and {given[NUMBER]!r}")
    count, number = int(given[COUNT]), int(given[NUMBER])
    if not number < count:
        raise UserError(f"{NUMBER} must be from 0 to {count - 1}, as {COUNT} = {count}, got {number}")
    addresses = given[ADDRESSES].split(",")
    if len(addresses) not in (1, count) or not addresses[0].rpartition(":")[2].isdigit():
        raise UserError(
            f"{ADDRESSES} must be HOST:PORT of process 0, such as 10.0.0.1:1234, or those of all {count} processes, "
            f"separated by commas, got {given[ADDRESSES]!r}"
        )
    return count > 1


def require_alone() -> None:
    """Refuse to go on where the environment asks this process to train with others, which only `run` does.

    Raises:
        UserError: It does.
    """
    if is_asked():
        raise UserError(f"only python -m tfigkd.run trains on several hosts; unset {ADDRESSES}, {COUNT} and {NUMBER}")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Return a context in which the process trains together with others, where the environment asks for it.

    A process that fails ends at once, without waiting for the others at the end, which then fail as well.

    Raises:
        UserError: The backend is another one, the address cannot be used, the processes have different numbers of
            devices, or one of them was lost.
    """
    if not is_asked():
        yield
        return
    with quiet_stderr():
        import keras
    if keras.backend.backend() != "jax":
        raise UserError(f"several processes train together on JAX only; set KERAS_BACKEND=jax, or unset {COUNT}")
    import jax

    _check_address()

    try:
        _initialize()
        yield
    except BaseException as error:
        atexit.register(_leave, error)  # after those of JAX, so before them: they would wait for all processes
        failed: BaseException | None = error
        while failed is not None and not isinstance(failed, jax.errors.JaxRuntimeError):
            failed = failed.__context__  # what Keras says when it cleans up after it
        reason = next(iter(str(failed).splitlines()), "")
        if failed is not None and not reason.startswith("RESOURCE_EXHAUSTED"):
            raise UserError(
                f"process {process_index()} cannot go on, most likely as another one was lost ({reason}); start the "
                "same command again in every process: training goes on from the last checkpoint"
            ) from error
        raise


def _initialize() -> None:
    import jax
    import keras

    with quiet_stderr():
        keras.utils.set_random_seed(0)  # else Keras draws one with the others; each stage sets its own
    # where they do not come together JAX aborts the process, and nothing can be said after that
    console.say(f"waiting for {os.environ[COUNT]} processes at {os.environ[ADDRESSES]}, for at most 5 minutes")
    # JAX waits in native code, where Python handles no signal, and takes SIGTERM for a mere notice from then on
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    keras.distribution.initialize()
    for number, handler in before.items():
        signal.signal(number, handler)
    devices = Counter(device.process_index for device in jax.devices())
    if len({*devices.values()}) > 1:
        raise UserError(f"all processes must have the same number of devices, got {sorted(devices.values())}")


def _check_address() -> None:
    """Refuse an unknown host, and in process 0 a port that is taken, on which JAX would crash."""
    given = os.environ[ADDRESSES].split(",")[0]
    host, _, port = given.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"{ADDRESSES}: no host {given} ({error}); give HOST:PORT of process 0") from error
    if int(os.environ[NUMBER]) == 0:
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            raise UserError(f"{ADDRESSES}: another program listens at {given}; choose another port in every process")


def _leave(error: BaseException) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def process_count() -> int:
    """Return how many processes train together; 1 where none were joined."""
    jax = sys.modules.get("jax")  # whoever has joined others has imported it
    return jax.process_count() if jax is not None and jax.distributed.is_initialized() else 1


def process_index() -> int:
    """Return which of the processes this is, from 0."""
    return sys.modules["jax"].process_index() if process_count() > 1 else 0


def is_first_process() -> bool:
    """Return whether this is the process that writes."""
    return process_index() == 0


def from_first(values: Any) -> Any:
    """Return what the first process has given.

    Args:
        values: An array, a number, or a list of them, of the same shapes in all processes.

    Returns:
        The same, as NumPy arrays where there are several processes.
    """
    if process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(values)


def meet(what: str) -> None:
    """Wait until all processes are here, and check that they do the same.

    Args:
        what: What each is about to do; one line.

    Raises:
        UserError: It is not the same in all of them.
    """
    if process_count() == 1:
        return
    import numpy as np
    from jax.experimental import multihost_utils

    mine = zlib.crc32(what.encode())
    others = [index for index, one in enumerate(multihost_utils.process_allgather(np.uint32(mine))) if one != mine]
    if others:
        raise UserError(
            f"process {process_index()} is at {what!r}, and process {others[0]} is not; start the same command in "
            "each, with the same folders"
        )
