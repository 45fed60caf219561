"""Child processes for tests: forked from a process that has already imported TensorFlow, Keras and the stages.

A new interpreter spends five seconds of processor time on these imports. A child is also a separate process, with
its own arguments, folder, environment, signals, limits and exit status, and runs the module as `python -m` does.

`python children.py DESCRIPTOR` is the process that forks; each test process starts its own one when it first needs it.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import itertools
import json
import multiprocessing.util
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
JAX = {"KERAS_BACKEND": "jax", "XLA_FLAGS": QUICK_TO_COMPILE, "PYTHONPATH": str(ROOT)}
"""Environment of a process whose Keras uses JAX, and in which XLA compiles quickly rather than well."""
SPAWNV_PASSFDS = multiprocessing.util.spawnv_passfds
PRELOADED = (
    "keras_tuner",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "tensorboard.plugins.hparams.api",
    "tfigkd.report.run_page",
    "tfigkd.search.outcome",
    "tfigkd.search.tuner",
    "tfigkd.stages.distill",
    "tfigkd.stages.preflight",
    "tfigkd.stages.estimate",
    "tfigkd.stages.pipeline",
    "tfigkd.stages.precision",
    "tfigkd.study.report",
)


class Child:
    """A forked process, with the part of `subprocess.Popen` that the tests need."""

    def __init__(self, connection: socket.socket, pid: int, stdout: int, stderr: int | None):
        self._connection, self.pid, self.returncode = connection, pid, None
        self.stdout = open(stdout, encoding="utf-8")  # noqa: SIM115 - closed by communicate, or by the test
        self.stderr = None if stderr is None else open(stderr, encoding="utf-8")  # noqa: SIM115
        self._texts, self._readers = {}, None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process and return its exit status, or minus the signal that ended it."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                told = self._connection.recv(64)
            except TimeoutError:
                raise subprocess.TimeoutExpired(f"child {self.pid}", timeout) from None
            if not told:
                raise ChildProcessError("the process that forks children has ended")
            self.returncode = int(told)
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired, BlockingIOError):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """Read all output, wait for the end, and return standard output and standard error."""
        if self._readers is None:
            streams = {"stdout": self.stdout} | ({} if self.stderr is None else {"stderr": self.stderr})
            self._readers = [threading.Thread(target=self._read, args=each, daemon=True) for each in streams.items()]
            for reader in self._readers:
                reader.start()
        self.wait(timeout)
        for reader in self._readers:
            reader.join()
        return self._texts["stdout"], self._texts.get("stderr")

    def _read(self, name, stream):
        with stream:
            self._texts[name] = stream.read()


class _Servers:
    """The processes that fork children, one for each Keras backend."""

    def __init__(self):
        self._started = {}

    def connect(self, backend: str) -> socket.socket:
        """Return a connection to the process of a backend; start it if it does not run."""
        if backend not in self._started:
            self._started[backend] = self._start(backend)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._started[backend][0], [b"child"], [theirs.fileno()])
        return ours

    def _start(self, backend):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            environment = {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
            process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,  # as in the children: Python looks at the kind of file only once
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C ends the tests; it ends when they have closed their socket
                text=True,
            )
        if ours.recv(64) != b"ready":
            raise ChildProcessError(process.communicate()[1])
        return ours, process

    def close(self):
        """End all processes that fork children."""
        for ours, process in self._started.values():
            ours.close()
            process.communicate()
        self._started.clear()


servers = _Servers()


def fork(
    folder: Path,
    module: str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    merged: bool = False,
    new_session: bool = False,
    file_size: int | None = None,
) -> Child:
    """Start a module in a forked process, as `python -m MODULE ARGUMENTS` would start it in a folder.

    Args:
        folder: Current folder of the process.
        module: Dotted name of the module.
        *arguments: Its command line.
        environment: Variables besides those of this process.
        merged: Whether standard error goes to standard output.
        new_session: Whether the process leads a session and a process group of its own.
        file_size: Largest file that the process can write, in bytes.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    connection = servers.connect(environment.get("KERAS_BACKEND", "tensorflow"))
    request = {
        "folder": str(folder),
        "module": module,
        "arguments": [str(argument) for argument in arguments],
        "environment": environment,
        "new_session": new_session,
        "file_size": file_size,
    }
    pipes = [os.pipe() for _ in range(1 if merged else 2)]
    theirs = [write for _, write in pipes]
    socket.send_fds(connection, [json.dumps(request).encode()], theirs if len(theirs) == 2 else theirs * 2)
    for write in theirs:
        os.close(write)
    pid = int(connection.recv(64))
    return Child(connection, pid, pipes[0][0], None if merged else pipes[1][0])


def run(folder: Path, module: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a module in a forked process to its end and return the captured text; options are those of `fork`."""
    child = fork(folder, module, *arguments, **options)
    output, errors = child.communicate()
    return subprocess.CompletedProcess([module, *map(str, arguments)], child.returncode, output, errors)


def wait_for(child: Child | subprocess.Popen, found: Callable[[], object], pause: float = 0.005) -> object:
    """Wait until a function finds something, and return it; fail if the child ends before.

    Args:
        child: The process that makes what is looked for.
        found: Function that returns something true when it is there.
        pause: Seconds between two calls of the function.
    """
    while True:
        ended = child.poll() is not None
        if result := found():
            return result
        if ended:
            raise AssertionError(f"ended with {child.returncode} before: {child.communicate()}")
        time.sleep(pause)


def on_jax(folder: Path, program: str, *arguments: object, fresh: bool = False) -> str:
    """Run a program in a process whose Keras uses JAX, to its good end, and return what it has printed.

    Args:
        folder: Current folder of the process; the program is written into it.
        program: Its text, which can import `tests` and `tfigkd`.
        *arguments: Its command line.
        fresh: For a new interpreter. A forked one has imported TensorFlow before the program begins.
    """
    (folder / "on_jax.py").write_text(program, encoding="utf-8")
    if fresh:
        command = [sys.executable, "on_jax.py", *map(str, arguments)]
        environment = os.environ | JAX
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    else:
        done = run(folder, "on_jax", *arguments, environment=JAX)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that is made once for all test processes; tests must not change it.

    Args:
        tmp_path_factory: The fixture.
        name: Name of the folder.
        make: Function that fills the folder, which exists.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def smoke_run(tmp_path_factory) -> Path:
    """Return a folder in which a new interpreter has run all stages of quickstart, a few steps of each.

    What it has printed is in `smoke.txt` beside the folder.
    """

    def make(folder):
        options = ("--smoke", "--teacher.drop_blocks", "14", "--student.drop_blocks", "16")
        done = subprocess.run(
            [sys.executable, "-m", "tfigkd.run", "--experiment", "quickstart", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        (folder.parent / "smoke.txt").write_text(done.stdout)

    return once(tmp_path_factory, "smoke", make)


def _serve(life: socket.socket) -> dict | None:
    """Fork a child for each connection that comes through a socket, and tell the connection its exit status.

    Returns:
        In each child its request; in this process None, when the other side has closed the socket.
    """
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(life, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(4096)
                _report_ended(running)
            if life in ready:
                told, descriptors, *_ = socket.recv_fds(life, 64, 1)
                if not told:
                    return None
                connection = socket.socket(fileno=descriptors[0])
                request, streams, *_ = socket.recv_fds(connection, 2**20, 2)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for each in (selector, life, woken, wakes, connection, *running.values()):
                        each.close()
                    return {**json.loads(request), "streams": streams}
                for stream in streams:
                    os.close(stream)
                connection.send(str(pid).encode())
                running[pid] = connection


def _report_ended(running: dict[int, socket.socket]) -> None:
    """Send the exit status of each child that has ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with running.pop(pid) as connection, contextlib.suppress(OSError):  # nobody may listen any more
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(request: dict) -> None:
    """Turn this process, just forked, into the requested child, and run its module."""
    for stream, number in zip(request["streams"], (1, 2), strict=True):
        os.dup2(stream, number)
        os.close(stream)
    if request["new_session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores SIGINT in background jobs
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.argv = [request["module"], *request["arguments"]]
    if request["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
    multiprocessing.util.spawnv_passfds = _spawn
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _spawn(program: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start a process of multiprocessing by a fork, and return its id; by a new interpreter if threads are running.

    It takes the place of `multiprocessing.util.spawnv_passfds`, with the same arguments.
    """
    if "--multiprocessing-fork" not in arguments or len(os.listdir("/proc/self/task")) > 1:
        return SPAWNV_PASSFDS(program, arguments, descriptors)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        kept = [2, *sorted(descriptors), os.sysconf("SC_OPEN_MAX")]
        for low, high in itertools.pairwise(kept):
            os.closerange(low + 1, high)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = ["-c", *arguments[arguments.index("-c") + 2 :]]
        _end(lambda: exec(arguments[arguments.index("-c") + 1], {"__name__": "__main__"}))
    return pid


def main() -> None:
    """Import the packages, fork children on request, and in each child run its module."""
    for name in PRELOADED:
        importlib.import_module(name)
    life = socket.socket(fileno=int(sys.argv[1]))
    life.send(b"ready")
    gc.freeze()  # a collection in a child would copy every page of the imported modules
    request = _serve(life)
    if request is not None:
        _end(lambda: _become(request))


def _end(work: Callable[[], None]) -> NoReturn:
    """Do the work of a child and end it with its exit status.

    Left out of the end of an interpreter is the clearing of all modules, a second of work.
    """
    try:
        os._exit(_status(work))
    finally:
        os._exit(1)


def _status(work: Callable[[], None]) -> int:
    """Do the work of a child and all that an interpreter does at its end; return the exit status."""
    status = 0
    try:
        work()
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        status = 1 if isinstance(exit.code, str) else int(exit.code or 0)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status


if __name__ == "__main__":
    main()
