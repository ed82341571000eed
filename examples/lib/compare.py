"""Compare ways to run a network: their logits and their speed."""

import contextlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

# The largest `relative_error` at which logits are accepted. With the networks and images of
# examples/benchmark.py, correct logits are off by up to 1e-5 in float32, 0.008 in TF32, 0.07 in
# bfloat16 and 0.41 in int8. Wrong logits are off by 0.7 to 3: those of other images, other weights
# or swapped color channels.
TOLERANCES = {"float32": 1e-3, "tf32": 0.02, "bfloat16": 0.15, "int8": 0.55}
MIN_ROUNDS = 3


def relative_error(logits: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest relative error over the images, for logits (N, num_classes).

    The relative error of an image is the norm of the difference between its logits and the expected
    ones, divided by the norm of the expected ones.
    """
    norm = np.linalg.norm
    errors = norm(logits - expected, axis=1) / norm(expected, axis=1)
    return float(errors.max())


def time_in_turns(calls: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Return the milliseconds that each call takes, one number per round.

    Each round times every call once. If other programs slow the machine down for a while, they slow
    down all calls alike.
    """
    for call in calls:
        call()  # the first call may compile
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < MIN_ROUNDS or time.perf_counter() < end:
        for call, milliseconds in zip(calls, times, strict=True):
            milliseconds.append(milliseconds_per_call(call))
    return times


def milliseconds_per_call(call: Callable[[], object]) -> float:
    """Return the median time of a call. Calls are repeated until they have taken 0.1 s.

    One call before them is not counted: it loads the network into the caches of the processor,
    which other networks have just filled.
    """
    time.sleep(0.05)  # ONNX Runtime's threads keep the CPU busy for a while after a call
    call()
    times: list[float] = []
    while sum(times) < 0.1:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide what converters and compilers print: progress, tables and warnings."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
