"""Processes that compute tasks at the same time; a task that is lost with its process is begun again."""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, connection, get_context, parent_process
from types import TracebackType
from typing import Any, Self

from apq_deploy.errors import UserError

ATTEMPTS = 3
"""How often a task is begun whose process is killed."""

Task = tuple[Any, ...]
"""Arguments of one call."""


class WorkerLost(Exception):
    """The process that computed a task is gone."""


class Workers(ABC):
    """What computes tasks, within a `with` block. elsewhere_s: processor time of processes that nobody here waits for.

    The function of a task is found by its name, so it must be one of a module.
    """

    elsewhere_s: float = 0.0

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def capacity(self) -> int:
        """How many tasks should be under way, so that nobody waits for one."""

    @abstractmethod
    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """The result of one call to come, for `result` to read."""

    @abstractmethod
    def result(self, future: Future[Any]) -> Any:
        """What a finished call has returned, or raised.

        Raises: WorkerLost if its process is gone.
        """

    def results(self, function: Callable[..., Any], tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Every task and its result, as they come in.

        Raises: UserError if the process of a task was killed three times.
        """
        waiting = deque((task, 1) for task in tasks)
        running: dict[Future[Any], tuple[Task, int]] = {}
        while waiting or running:
            while waiting and len(running) < max(1, self.capacity()):
                task, attempt = waiting.popleft()
                running[self.submit(function, *task)] = task, attempt
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, attempt = running.pop(future)
                try:
                    found = self.result(future)
                except WorkerLost:
                    if attempt == ATTEMPTS:
                        raise UserError(
                            f"a worker process was killed {ATTEMPTS} times at the same task, perhaps for want of "
                            "memory; what was finished is kept, the same command goes on from there, also with fewer "
                            "--workers"
                        ) from None
                    waiting.appendleft((task, attempt + 1))
                else:
                    yield task, found


class Processes(Workers):
    """Fresh processes of this machine, all gone when the block ends, or the driver does, however that happens.

    Each is a pool of its own, so that a killed one takes only its own tasks with it.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise UserError(f"expected at least one worker, got {n}")
        self._n = n

    def __enter__(self) -> Self:
        self._pools = [_pool() for _ in range(self._n)]
        self._running: list[list[Future[Any]]] = [[] for _ in range(self._n)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for worker in active_children():
                worker.kill()
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def capacity(self) -> int:
        return 2 * len(self._pools)  # the next one is there when a process has finished one

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        self._running = [[future for future in running if not future.done()] for running in self._running]
        free = min(range(len(self._pools)), key=lambda i: len(self._running[i]))
        try:
            future = self._pools[free].submit(function, *args)
        except BrokenProcessPool:
            self._pools[free] = _pool()
            future = self._pools[free].submit(function, *args)
        self._running[free].append(future)
        return future

    def result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise WorkerLost from None


class _Pool(ProcessPoolExecutor):
    """A pool whose workers, which are started by `submit`, do not hear the terminal's interrupt: the driver does."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _pool() -> _Pool:
    return _Pool(1, get_context("spawn"), initializer=_follow_driver)


def _follow_driver() -> None:
    """End this worker when its driver has ended, also where that was killed and could not say so."""
    driver = parent_process()
    assert driver is not None

    def watch() -> None:
        connection.wait([driver.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
