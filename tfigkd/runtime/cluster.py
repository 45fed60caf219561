"""Calls of functions on the machines of a Ray cluster. Only this module imports Ray.

The machines share the folders of the run: a call works in the folder in which the command was started.
"""

import contextlib
import functools
import logging
import os
import pickle
import re
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfigkd import __version__
from tfigkd.runtime.errors import UserError, system_line
from tfigkd.runtime.machine import cores, limit_threads
from tfigkd.runtime.provenance import commit, versions
from tfigkd.runtime.quiet import quiet_stderr
from tfigkd.runtime.text import counted

AUTO = "auto"
CURRENT = Path("/tmp/ray/ray_current_cluster")
"""Where `ray start` notes the address of the cluster that this machine is a part of."""
LOOPBACK_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""The variable that, set to 0, keeps Ray to the loopback address on any system, as by default on macOS."""
ANSWERS = 5.0  # seconds in which an address has to answer
RETRIES = 3
"""How often a call is repeated after its machine or process has died."""


@dataclass(frozen=True)
class Ended:
    """The end of a call.

    Attributes:
        index: Which call.
        node: Address of the machine that did it.
        seconds: What it took there.
        value: What the function returned.
    """

    index: int
    node: str
    seconds: float
    value: Any


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that this process is connected to.

    Attributes:
        nodes: Addresses of its machines.
        cores: CPU cores of all of them.
        largest: CPU cores of the machine that has most.
        accelerators: GPUs of all of them.
    """

    nodes: tuple[str, ...]
    cores: int
    largest: int
    accelerators: int

    def __str__(self) -> str:
        gpus = f", {self.accelerators} GPUs" if self.accelerators else ""
        return f"{counted(len(self.nodes), 'node')}, {self.cores} cores{gpus}"

    def call(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        *,
        cores: int = 1,
        seconds: float | None = None,
    ) -> Iterator[Ended]:
        """Call a function of this package once for each tuple of arguments, and yield the ends as they come.

        A call takes its cores, and a GPU where the cluster has any. It is repeated elsewhere if its machine or process
        dies; an exception of the function is raised here. Closing the iterator leaves out the calls that have not
        begun and ends those that are running.

        Args:
            function: Importable by its name; its arguments and results can be pickled.
            arguments: Of each call.
            cores: CPU cores that a call occupies, at most those of the largest machine.
            seconds: Time after which the iterator ends, whatever is left.

        Raises:
            UserError: That of a call, with the address of its machine; or a machine has another version, lacks the
                package or the folder, or died too often.
        """
        import ray

        remote = ray.remote(_on_node).options(
            num_cpus=cores, num_gpus=min(1, self.accelerators), max_retries=RETRIES, name=function.__name__
        )
        here = (os.getcwd(), _version(), cores)
        # pickled here, so that a machine of another version says so instead of failing at what it does not know
        calls = [pickle.dumps((function, one)) for one in arguments]
        pending = {remote.remote(here, one): index for index, one in enumerate(calls)}
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            while pending:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready, _ = ray.wait(list(pending), timeout=left)
                if not ready:
                    return
                yield Ended(pending.pop(ready[0]), *_result(ready[0]))
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


@functools.cache
def _version() -> str:
    return f"tfigkd {' '.join(filter(None, (__version__, commit())))}; {versions()}"


def _on_node(here: tuple[str, str, int], call: bytes) -> tuple[str, float, Any]:
    """Make a pickled call on a machine of the cluster; return the address, the seconds and what it returned or raised.

    Args:
        here: Folder, version and cores of a call, as where the command was started.
        call: The function and its arguments.
    """
    import ray

    (folder, version, cores), began = here, time.monotonic()
    node = ray.util.get_node_ip_address()
    limit_threads(cores)
    try:
        if _version() != version:
            raise UserError(f"it has {_version()}, this machine has {version}; install the same on every machine")
        try:
            os.chdir(folder)
        except OSError as error:
            raise UserError(f"it has no folder {folder} ({error.strerror}); share it among the machines") from error
        function, arguments = pickle.loads(call)
        value = function(*arguments)
    except UserError as error:
        value = error
    except OSError as error:
        value = UserError(system_line(error))
    return node, time.monotonic() - began, value


def _result(reference: Any) -> tuple[str, float, Any]:
    """Return what `_on_node` returned, and raise what the function raised."""
    import ray

    try:
        node, seconds, value = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        missing = re.search(r"No module named '([\w.]+)'", str(error))
        if missing:
            raise UserError(
                f"a machine of the cluster cannot import {missing[1]}; install tfigkd[cluster] {__version__} on it"
            ) from error
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"machines or processes of the cluster died {RETRIES + 1} times in one call ({reason}); look at the memory "
            "and Ray's logs in /tmp/ray/session_latest/logs, then repeat the command, which continues"
        ) from error
    if isinstance(value, UserError):
        raise UserError(f"node {node}: {value}")
    return node, seconds, value


@contextlib.contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect this process to a Ray cluster, and disconnect it at the end.

    Args:
        address: HOST:PORT of a cluster that this machine is a part of; or "auto": the cluster that was started on this
            machine, else Ray is started on only this machine, for this process and on the loopback address.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    chosen = _running() if address == AUTO else address
    if chosen is not None:
        _check_answers(chosen)
    options: dict[str, Any] = {"address": chosen or "local"}
    if chosen is None:
        options |= {"include_dashboard": False, "num_cpus": cores()}  # Ray counts those of the machine
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if chosen is None or chosen.rpartition(":")[0] in ("127.0.0.1", "localhost"):
        # else Ray takes the address of the network in the place of that of this machine
        os.environ[LOOPBACK_ALONE] = "0"
    try:
        import ray
    except ImportError as error:
        raise UserError("--cluster needs Ray; install it: pip install 'tfigkd[cluster]'") from error
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray announces changes of versions to come
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, before)  # Ray prints where the process was, and ends it
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--cluster {address}: cannot join the cluster ({reason}); this machine has to be a node of it: ray start "
            f"--address {chosen}"
        ) from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        processors, accelerators = ([int(node["Resources"].get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
        addresses = tuple(sorted(node["NodeManagerAddress"] for node in nodes))
        with quiet_stderr():  # Ray prints a page where a machine is lost
            yield Cluster(addresses, sum(processors), max(processors), sum(accelerators))
    finally:
        ray.shutdown()


def _running() -> str | None:
    """Return the address of the cluster that was started on this machine; None where there is none that answers."""
    given = os.environ.get("RAY_ADDRESS")
    if given:
        return given
    try:
        address = CURRENT.read_text(encoding="utf-8").strip()
        _check_answers(address)
    except (OSError, UserError):  # none was started, or it ended without a word
        return None
    return address


def _check_answers(address: str) -> None:
    """Refuse an address that is malformed, does not answer, or is not that of a Ray cluster.

    Ray itself would try for a minute, and then abort.
    """
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or "/" in host:
        raise UserError(f"--cluster must be auto or HOST:PORT, such as 10.0.0.1:6379, got {address!r}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS) as connection:
            speaks = _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--cluster {address} does not answer ({getattr(error, 'strerror', None) or error}); start the cluster: "
            f"ray start --head --port {port}"
        ) from error
    if not speaks:
        raise UserError(
            f"--cluster {address} answers, but not as a Ray cluster; give the address that ray start --head has printed"
        )


def _speaks_http2(connection: socket.socket) -> bool:
    """Return whether the other side greets as the head of a Ray cluster does, which speaks gRPC over HTTP/2.

    Both sides begin with a frame of settings, the client after its preface (RFC 9113, 3.4).
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):  # Ray greets after the handshake of its certificates
        return True
    settings = b"\0\0\0\4\0\0\0\0\0"  # of no length, kind 4, without flags, of the connection itself
    answer = b""
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        while len(answer) < len(settings) and (more := connection.recv(len(settings) - len(answer))):
            answer += more
    except OSError:  # it says nothing, or has hung up
        return False
    return len(answer) == len(settings) and answer[3] == settings[3]
