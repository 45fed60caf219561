"""LiteRT's own profiler: the time of each operation of a file, as XNNPACK and the built-in kernels report it.

The Python package of LiteRT has no function for it, but its library has (LiteRtCompiledModelGetProfiler of the C
interface, version 2.3). It is called in a child process, so that a change of that interface cannot crash the caller.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data.spaces import noise_images
from tfigkd.edge.latency import run_count
from tfigkd.edge.litert import input_details, input_values, open_classifier, output_details
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.processes import call_module, last_line
from tfigkd.runtime.quiet import quiet_stderr

BUILTIN, DELEGATED = 2, 8
"""Types of events: a kernel of LiteRT, and an operator of XNNPACK."""
INVOKE, PLAIN = "Invoke", 1
"""Tag and type of the event that is one whole inference."""
CPU = 1
WRITE = 1
SECONDS = 300
"""Time limit of the child process."""
UNREACHABLE = "LiteRT's profiler is not reachable in this version"


@dataclass(frozen=True)
class Event:
    """An operation as LiteRT reports it.

    Attributes:
        tag: Its name: the type of the operation, or XNNPACK's name such as "Convolution (NHWC, F32) IGEMM".
        index: Of a built-in kernel: the operation's place in the file. Of XNNPACK: its place in one delegate.
        delegated: Whether XNNPACK runs it.
        milliseconds: Interquartile mean of all inferences.
    """

    tag: str
    index: int
    delegated: bool
    milliseconds: float


@dataclass(frozen=True)
class Recording:
    """What the profiler reports of a file.

    Attributes:
        events: In the order in which they run.
        milliseconds: Of the whole inference while it is profiled, interquartile mean.
        runs: Number of profiled inferences.
    """

    events: tuple[Event, ...]
    milliseconds: float
    runs: int


def record(path: Path, *, runs: int = 200, warmup: int = 20, threads: int = 1) -> Recording:
    """Profile a file on an image of noise.

    LiteRT counts whole microseconds of each XNNPACK operator and rounds down; means of many inferences are finer.

    Args:
        path: A .tflite file with one input and one output.
        runs: Profiled inferences; fewer if they take longer than two seconds.
        warmup: Inferences before.
        threads: Threads of XNNPACK and of the kernels.

    Raises:
        UserError: the installed version of LiteRT does not report times, or the child process fails on the file.
    """
    try:
        done = call_module("tfigkd.edge.litert_profiler", path, runs, warmup, threads, seconds=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{UNREACHABLE}: no answer within {SECONDS} s") from error
    if done.returncode:
        raise UserError(f"{UNREACHABLE}: {last_line(done)}")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise UserError(f"{UNREACHABLE}: its answer cannot be read") from error
    times = np.array([one["microseconds"] for one in answer], float) / 1e3
    tags = {tuple(map(tuple, one["events"])) for one in answer}
    if len(tags) != 1:
        raise UserError(f"{UNREACHABLE}: it reports other operations from one inference to the next")
    (events,) = tags
    return Recording(
        tuple(
            Event(tag, index, kind == DELEGATED, interquartile_mean(times[:, place]))
            for place, (tag, kind, index) in enumerate(events)
        ),
        interquartile_mean(np.array([one["whole"] for one in answer]) / 1e3),
        len(answer),
    )


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean of the middle half of some values, which an interrupted inference does not change."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


class _Event(ctypes.Structure):
    """ProfiledEventData of LiteRT's C interface, as of version 2.3."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start", ctypes.c_uint64),
        ("microseconds", ctypes.c_uint64),
        ("memory", ctypes.c_uint64 * 6),
        ("index", ctypes.c_uint64),
        ("more", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )


class _TensorType(ctypes.Structure):
    """LiteRtRankedTensorType, with space for later versions."""

    _fields_ = (
        ("element", ctypes.c_int),
        ("rank", ctypes.c_uint32),
        ("sizes", ctypes.c_int32 * 8),
        ("more", ctypes.c_char * 256),
    )


class _Profiled:
    """A file opened by LiteRT's C interface with its profiler on. It is never closed: its process ends."""

    def __init__(self, path: Path, image: np.ndarray, output_shape: Sequence[int], threads: int) -> None:
        import ai_edge_litert

        names = {"darwin": "libLiteRt.dylib", "win32": "libLiteRt.dll"}
        place = Path(ai_edge_litert.__file__).parent / names.get(sys.platform, "libLiteRt.so")
        self._library = ctypes.CDLL(str(place))
        self._kept: list[Any] = []
        self._environment = self._made("LiteRtCreateEnvironment", 0, None)
        model = self._made("LiteRtCreateModelFromFile", self._environment, str(path).encode())
        options = self._made("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, CPU)
        self._add_option(options, "runtime_options_string", "enable_profiling = true")
        self._add_option(options, "xnnpack", f"num_threads = {threads}")
        self._model = self._made("LiteRtCreateCompiledModel", self._environment, model, options)
        first = ctypes.c_size_t(0)
        graph = self._made("LiteRtGetModelSubgraph", model, first)
        if -1 in self._type("Input", graph).sizes[: image.ndim]:
            sizes = (ctypes.c_int * image.ndim)(*image.shape)
            place_of = (self._model, first, first, sizes, ctypes.c_size_t(image.ndim))
            self._call("LiteRtCompiledModelResizeInputTensor", *place_of)
        self._source = self._buffer("Input", graph, image.shape)
        self._sink = self._buffer("Output", graph, output_shape)
        address = self._made("LiteRtLockTensorBuffer", self._source, given=WRITE)
        ctypes.memmove(address, np.ascontiguousarray(image).ctypes.data, image.nbytes)
        self._call("LiteRtUnlockTensorBuffer", self._source)
        self._profiler = self._made("LiteRtCompiledModelGetProfiler", self._model)

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status:
            raise OSError(f"{name} ended with status {status}")

    def _made(self, name: str, *arguments: Any, given: int | None = None) -> ctypes.c_void_p:
        """Call a function that writes a pointer to its last argument, or its last but one, and return the pointer."""
        pointer = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(pointer), *(() if given is None else (given,)))
        return pointer

    def _add_option(self, options: ctypes.c_void_p, name: str, text: str) -> None:
        held, free = ctypes.create_string_buffer(f"{text}\n".encode()), ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_keep)
        self._kept += [held, free]
        content = ctypes.cast(held, ctypes.c_void_p)
        self._call(
            "LiteRtAddOpaqueOptions", options, self._made("LiteRtCreateOpaqueOptions", name.encode(), content, free)
        )

    def _type(self, end: str, graph: ctypes.c_void_p) -> _TensorType:
        kind = _TensorType()
        tensor = self._made(f"LiteRtGetSubgraph{end}", graph, ctypes.c_size_t(0))
        self._call("LiteRtGetRankedTensorType", tensor, ctypes.byref(kind))
        return kind

    def _buffer(self, end: str, graph: ctypes.c_void_p, shape: Sequence[int]) -> ctypes.c_void_p:
        kind, first = self._type(end, graph), ctypes.c_size_t(0)
        for place, size in enumerate(shape):  # a batch that the file leaves open is one
            kind.sizes[place] = int(size)
        needs = self._made(f"LiteRtGetCompiledModel{end}BufferRequirements", self._model, first, first)
        name = "LiteRtCreateManagedTensorBufferFromRequirements"
        return self._made(name, self._environment, ctypes.byref(kind), needs)

    def run(self) -> None:
        """Run one inference."""
        one, first = ctypes.c_size_t(1), ctypes.c_size_t(0)
        ends = [(ctypes.c_void_p * 1)(buffer) for buffer in (self._source, self._sink)]
        self._call("LiteRtRunCompiledModel", self._model, first, one, ends[0], one, ends[1])

    def profile(self) -> dict[str, Any]:
        """Return the events of one inference, their microseconds, and those of the whole inference."""
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        self.run()
        self._call("LiteRtStopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        if not all(event.kind in {1 << place for place in range(9)} and event.source in (0, 1, 2) for event in events):
            raise OSError("the events have another layout")  # found out before any tag is read
        named = [(event.tag.decode(), event.kind, event.index, event.microseconds) for event in events]
        parts = [event for event in named if event[1] in (BUILTIN, DELEGATED)]
        (whole,) = [event[3] for event in named if event[:2] == (INVOKE, PLAIN)]
        return {"events": [event[:3] for event in parts], "microseconds": [event[3] for event in parts], "whole": whole}


def _keep(address: Any) -> None:
    """Free nothing: the process ends."""


def _child(path: Path, runs: int, warmup: int, threads: int) -> str:
    interpreter = open_classifier(path, threads=1)
    source, sink = input_details(interpreter), output_details(interpreter)
    noise = noise_images(tuple(source["shape"]))
    profiled = _Profiled(path, input_values(noise, source), sink["shape"], threads)
    for _ in range(max(warmup, 1)):
        profiled.run()
    count = run_count(runs, profiled.profile()["whole"] / 1e6)
    return json.dumps([profiled.profile() for _ in range(count)])


if __name__ == "__main__":
    try:
        with quiet_stderr():
            answer = _child(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
        print(answer, flush=True)
    except (OSError, AttributeError, ValueError, UserError) as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)  # nothing is freed, so nothing can fail on the way out
