"""Measured points in SQLite: each is its own transaction, so a killed collection loses at most the one in work."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.space import CHANNEL_GENE, Genes, SearchSpace

Kind = Literal["float", "quantized"]
KINDS: tuple[Kind, ...] = ("float", "quantized")
SCHEMA = "apq-deploy/points/1"
# One quantized group: ten random networks, then ten policies on one architecture. Source: APQ (CVPR 2020), section 4.1.
GROUP = 20
HELD_OUT_EVERY = 5


@dataclass(frozen=True, eq=False)
class Points:
    """Measured subnets of one kind. index: (n,); genes: (n, n_genes); accuracy: (n,) in [0, 1]; seconds: (n,)."""

    index: NDArray[np.int64]
    genes: Genes
    accuracy: NDArray[np.float64]
    seconds: NDArray[np.float64]
    held_out: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.index)


def planned_genome(space: SearchSpace, kind: Kind, index: int, seed: int) -> Genes:
    """The genome of point `index`, the same for the same seed, (n_genes,).

    Full-precision points are random. Of every 20 quantized points, 10 have architecture and bits at random, and 10
    share one random architecture under different bits.
    """
    genome = space.sample(1, np.random.default_rng((seed, KINDS.index(kind), index)))[0]
    group, place = divmod(index, GROUP)
    if kind == "quantized" and place >= GROUP // 2:
        shared = space.sample(1, np.random.default_rng((seed, 2, group)))
        _, policy = space.split(genome[None])
        _, blocks = space.split(shared)
        blocks[..., CHANNEL_GENE + 1 :] = policy[..., CHANNEL_GENE + 1 :]
        genome = space.repair(shared, np.random.default_rng((seed, 3, index)))[0]
    return genome


def is_held_out(kind: Kind, index: int) -> bool:
    """Whether a point is kept from training: every fifth one, quantized points by whole groups.

    So no architecture of a group is on both sides.
    """
    place = index if kind == "float" else index // GROUP
    return place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


class PointStore:
    """The database of one collection, bound to its space, supernet and settings.

    Raises: UserError for a file that is no such database, or belongs to another collection.
    """

    def __init__(self, path: Path, space: SearchSpace, settings: Mapping[str, Any] | None = None) -> None:
        """Open `path`. With `settings`, make it if it is not there; without, it must be there."""
        if settings is None and not path.is_file():
            raise UserError(f"there are no points at {path}; make them with `apq-deploy collect`")
        self.path = path
        self.space = space
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            with self._db:
                self._db.execute("CREATE TABLE IF NOT EXISTS header (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS points (kind TEXT NOT NULL, number INTEGER NOT NULL, "
                    "genes TEXT NOT NULL, accuracy REAL NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (kind, number))"
                )
                header = dict(self._db.execute("SELECT key, value FROM header"))
                if not header and settings is not None:
                    header = {"schema": SCHEMA, "space": space.name, "settings": _canonical(settings)}
                    self._db.executemany("INSERT INTO header VALUES (?, ?)", header.items())
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is not a database of points ({error})") from None
        if header.get("schema") != SCHEMA:
            raise UserError(f"{path}: expected schema {SCHEMA!r}, got {header.get('schema')!r}")
        if header["space"] != space.name:
            raise UserError(f"{path} holds points of the space {header['space']!r}, expected {space.name!r}")
        self.settings: dict[str, Any] = json.loads(header["settings"])
        if settings is not None and header["settings"] != _canonical(settings):
            changed = sorted(k for k in self.settings.keys() | settings if self.settings.get(k) != settings.get(k))
            raise UserError(
                f"{path} was collected with another {', '.join(changed)}; call with the same values to go on, "
                "or use another folder"
            )

    def done(self, kind: Kind) -> set[int]:
        """Numbers of the points that are there."""
        return {row[0] for row in self._db.execute("SELECT number FROM points WHERE kind = ?", (kind,))}

    def add(self, kind: Kind, number: int, genome: Genes, accuracy: float, seconds: float) -> None:
        """Store one point for good; a point that is there already stays as it is."""
        row = (kind, number, json.dumps(genome.tolist()), accuracy, seconds)
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO points VALUES (?, ?, ?, ?, ?)", row)

    def points(self, kind: Kind) -> Points:
        """All points of a kind, by number."""
        rows = self._db.execute(
            "SELECT number, genes, accuracy, seconds FROM points WHERE kind = ? ORDER BY number", (kind,)
        ).fetchall()
        numbers = np.array([row[0] for row in rows], np.int64)
        genes = np.array([json.loads(row[1]) for row in rows], np.int8).reshape(len(rows), self.space.n_genes)
        return Points(
            numbers,
            genes,
            np.array([row[2] for row in rows], np.float64),
            np.array([row[3] for row in rows], np.float64),
            np.array([is_held_out(kind, int(n)) for n in numbers], bool),
        )

    def close(self) -> None:
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.close()


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)
