"""Measurements by stage and key, each kept as soon as it is made; tasks that fill in what is missing."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from apq_deploy.predictor.collect import KEEP_MEMORY
from apq_deploy.progress import progress
from apq_deploy.workers import Processes
from benchmarks.paper.plan import Plan

Key = tuple[str | int | float, ...]
Value = dict[str, Any]
Task = Callable[[Plan, Key], Value]


class Ledger:
    """A small database: (stage, key) -> value, with the processor time that it took."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60)
        with self._db:
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS measurements (stage TEXT, key TEXT, value TEXT, cpu_seconds REAL, "
                "PRIMARY KEY (stage, key))"
            )

    def of(self, stage: str) -> dict[Key, Value]:
        """Everything that a stage has measured."""
        rows = self._db.execute("SELECT key, value FROM measurements WHERE stage = ? ORDER BY rowid", (stage,))
        return {tuple(json.loads(key)): json.loads(value) for key, value in rows}

    def cpu_seconds(self, stage: str) -> dict[Key, float]:
        """Processor time of everything that a stage has measured."""
        rows = self._db.execute("SELECT key, cpu_seconds FROM measurements WHERE stage = ?", (stage,))
        return {tuple(json.loads(key)): seconds for key, seconds in rows}

    def add(self, stage: str, key: Key, value: Value, cpu_seconds: float) -> None:
        row = (stage, json.dumps(key), json.dumps(value), cpu_seconds)
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?)", row)

    def fill(
        self, plan: Plan, stage: str, keys: Iterable[Key], task: Task, workers: int | None = None
    ) -> dict[Key, Value]:
        """What the stage has measured, after `task` has been done for every key that was missing."""
        known = self.of(stage)
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            os.environ.update(KEEP_MEMORY)
            with progress(stage, len(missing)) as advance, Processes(workers or plan.workers) as processes:
                tasks = ((task, plan, key) for key in missing)
                for done, ((_, _, key), (value, cpu_seconds)) in enumerate(processes.results(_timed, tasks), 1):
                    self.add(stage, key, value, cpu_seconds)
                    advance(done, " ".join(map(str, key)))
        return self.of(stage)


def _timed(task: Task, plan: Plan, key: Key) -> tuple[Value, float]:
    torch.set_num_threads(1)
    started = time.process_time()
    value = task(plan, key)
    return value, time.process_time() - started
