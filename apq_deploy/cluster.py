"""Ray as workers: tasks computed on other machines, which read the files that a task names by the same paths."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import redirect_stdout
from types import ModuleType, TracebackType
from typing import Any, Self

from apq_deploy.errors import UserError
from apq_deploy.workers import WorkerLost, Workers

LOCAL = "local"
OBJECT_STORE_BYTES = 100_000_000
"""Near Ray's least: only arguments and results pass through it."""


class RayWorkers(Workers):
    """The machines of a Ray cluster at `address`; `local` starts one here, of `workers` processes.

    A task takes one processor, and one GPU too where `gpu`. With `whole_machines` each task has a machine to itself, so
    that nothing of ours disturbs what it times.

    Raises: UserError where Ray is not installed or there is no cluster at `address`, on entering.
    """

    def __init__(self, address: str, workers: int = 1, *, gpu: bool = False, whole_machines: bool = False) -> None:
        if address != LOCAL and workers != 1:
            raise UserError(
                f"with --ray {address} the cluster says how many work at the same time; leave out --workers"
            )
        self._address = address
        self._workers = workers
        self._gpu = gpu
        self._whole_machines = whole_machines
        self._machine_of: dict[Future[Any], str] = {}
        self._told = redirect_stdout(sys.stderr)  # Ray's notes on lost workers, which begin anew here

    def __enter__(self) -> Self:
        self._ray = _ray()
        self._told.__enter__()
        heard = signal.getsignal(signal.SIGTERM)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if self._address == LOCAL:
                self._ray.init(
                    address=LOCAL,
                    num_cpus=self._workers,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    **quiet,
                )
            else:
                self._ray.init(address=self._address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            self._told.__exit__(None, None, None)
            raise UserError(
                f"cannot reach a Ray cluster at {self._address}: {str(error).splitlines()[0]}; begin one with "
                "`ray start --head`, or give --ray local"
            ) from None
        signal.signal(signal.SIGTERM, heard)  # Ray puts its own in the place of the command line's
        self._calls = self._ray.remote(_timed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()
        self._told.__exit__(kind, error, trace)

    def capacity(self) -> int:
        if self._whole_machines:
            return len(self._machines())
        # asked again each time: machines may come and go
        return 2 * int(self._ray.cluster_resources().get("GPU" if self._gpu else "CPU", 0))

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        # a lost task is begun again by `results`, as with processes of this machine
        options: dict[str, Any] = {"max_retries": 0, "num_cpus": 1, "num_gpus": int(self._gpu)}
        machine = None
        if self._whole_machines:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            machines = self._machines()
            if not machines:
                raise UserError("the Ray cluster has no machine with processors left; start one and call again")
            self._machine_of = {future: m for future, m in self._machine_of.items() if not future.done()}
            taken = list(self._machine_of.values())
            machine = min(machines, key=taken.count)
            options["num_cpus"] = machines[machine]
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(machine, soft=False)
        future: Future[Any] = self._calls.options(**options).remote(function, args).future()
        if machine is not None:
            self._machine_of[future] = machine
        return future

    def result(self, future: Future[Any]) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            found, cpu_s = future.result()
        except RayTaskError as error:
            raise error.cause from None  # what the function itself has raised
        except RayError:
            raise WorkerLost from None
        self.elsewhere_s += cpu_s
        return found

    def _machines(self) -> dict[str, float]:
        """Number of processors of every machine that is there, by its id in Ray."""
        return {
            node["NodeID"]: node["Resources"]["CPU"]
            for node in self._ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        }


def _ray() -> ModuleType:
    """Ray itself. Raises: UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report of its use; read when it is imported
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # and no warning of what is to change
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install 'apq-deploy[ray]', on every machine of the cluster") from None
    return ray


def _timed(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, float]:
    """What the call returns, and the processor time that it took here."""
    started = time.process_time()
    return function(*args), time.process_time() - started
