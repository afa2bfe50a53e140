"""Worker processes that never outlive the command that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from typing import Any

from apq_deploy.errors import UserError


class _Pool(ProcessPoolExecutor):
    """A pool whose workers, which are started by `submit`, do not hear the terminal's interrupt: the driver does."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes, all gone when the block ends, or the driver does, however that happens.

    Raises: UserError if a worker was killed.
    """
    pool = _Pool(workers, get_context("spawn"), initializer=_follow_driver)
    try:
        yield pool
    except BaseException as error:
        for worker in active_children():
            worker.kill()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process was killed, perhaps for want of memory; what was finished is kept, the same command "
                "goes on from there, also with fewer --workers"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_driver() -> None:
    """End this worker when its driver has ended, also where that was killed and could not say so."""
    driver = parent_process()
    assert driver is not None

    def watch() -> None:
        connection.wait([driver.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
