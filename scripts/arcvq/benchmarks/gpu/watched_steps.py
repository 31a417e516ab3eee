"""Watch the steps of a training from outside: their times, the host's waits for the device, and its launches."""

import statistics
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from arcvq.benchmarks.gpu.waits import reported_waits

# The first steps make the optimizer's state and choose kernels.
_WARM_STEPS = 2


class WatchedSteps(ExitStack):
    """A context around a training of one optimizer, in which each of its updates ends a step.

    The last step logs, draws and saves, and stands outside of all numbers; the profiled steps stand outside of times
    and waits. On a CPU there are times alone: nothing waits there, and nothing is launched.

    Args:
        steps: steps of the training, at least 5.
        device: that it trains on.
    """

    def __init__(self, steps: int, device: torch.device):
        super().__init__()
        self._is_cuda, self._steps = device.type == "cuda", steps
        self._profiled = range(steps // 2, steps // 2 + max(1, steps // 8))
        self._marks: list[Any] = []  # of the end of each step
        self._waits: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._profile: profile | None = None

    def __enter__(self) -> "WatchedSteps":
        super().__enter__()
        self.callback(register_optimizer_step_post_hook(lambda *_: self._end_step()).remove)
        if self._is_cuda:
            self.enter_context(reported_waits(self._wait))
        return self

    def result(self) -> dict[str, Any]:
        """Return the median of the steps' seconds, the waits of all watched steps by line, and the calls of a step."""
        times = self._times()
        found = {"seconds": statistics.median(times), "slowest_s": max(times), "timed_steps": len(times)}
        if not self._is_cuda:
            return found
        calls = {name: number / len(self._profiled) for name, number in sorted(self._calls.items())}
        return found | {
            "waits": dict(self._waits.most_common()),
            "launches_per_step": sum(number for name, number in calls.items() if "Launch" in name),
            "calls_per_step": calls,
        }

    def _end_step(self) -> None:
        """Mark the end of a step without waiting for the device; start or stop the profiler."""
        if not self._is_cuda:
            self._marks.append(time.perf_counter())
            return
        self._marks.append(torch.cuda.Event(enable_timing=True))
        self._marks[-1].record()
        if len(self._marks) == self._profiled.start:
            self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self._profile.start()
        elif len(self._marks) == self._profiled.stop and self._profile is not None:
            self._profile.stop()
            calls = {event.key: event.count for event in self._profile.key_averages()}
            # The runtime's functions; kernels have the names of templates, or of cutlass.
            self._calls.update(
                {name: number for name, number in calls.items() if name.startswith(("cuda", "cuLaunch"))}
            )
            self._profile = None

    def _wait(self, line: str) -> None:
        if _WARM_STEPS <= len(self._marks) < self._steps - 1 and self._profile is None:
            self._waits[line] += 1

    def _times(self) -> list[float]:
        """Return the seconds of the steps that count."""
        if self._is_cuda:
            torch.cuda.synchronize()
        found = []
        for index in range(_WARM_STEPS, self._steps - 1):
            before, after = self._marks[index - 1], self._marks[index]
            if not self._is_cuda:
                found.append(after - before)
            elif not self._profiled.start <= index <= self._profiled.stop:
                found.append(before.elapsed_time(after) / 1e3)
        return found
