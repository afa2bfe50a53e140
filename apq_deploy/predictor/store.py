"""Measured points in SQLite: each is its own transaction, so a killed collection loses at most the one in work."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.space import CHANNEL_GENE, Genes, SearchSpace

Kind = Literal["float", "quantized", "calibrated", "chosen"]
KINDS: tuple[Kind, ...] = ("float", "quantized", "calibrated", "chosen")
"""In full precision; quantized and fine-tuned; quantized, only calibrated; as quantized, but chosen by searches."""
PLANNED: tuple[Kind, ...] = KINDS[:3]
"""Kinds whose points follow from the seed."""
SCHEMA = "apq-deploy/points/1"
# One quantized group: ten random networks, then ten policies on one architecture. Source: APQ (CVPR 2020), section 4.1.
GROUP = 20
HELD_OUT_EVERY = 5
MAX_POINTS = 1_000_000
"""Of a kind; APQ collected 80,000."""


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
    """The genome of point `index` of a kind that is not chosen, the same for the same seed, (n_genes,).

    Full-precision points are random. Of every 20 quantized points, 10 have architecture and bits at random, and 10
    share one random architecture under different bits. Calibrated points are the quantized ones before fine-tuning.
    """
    kind = "float" if kind == "float" else "quantized"
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
    """Whether a point is kept from training: every fifth one, quantized points by whole groups, chosen ones never.

    So no architecture of a group is on both sides.
    """
    if kind == "chosen":
        return False
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
        is_new = not path.exists()
        with self._told("used"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            with self._told("used"):
                header = self._header(settings)
            self.settings = self._checked(header, settings)
        except UserError:
            self._db.close()
            if is_new:
                path.unlink(missing_ok=True)
            raise
        if settings is not None:
            with self._told("written"):
                self._db.execute("PRAGMA journal_mode=WAL")

    def _header(self, settings: Mapping[str, Any] | None) -> dict[str, str]:
        """The header, made in an empty file; a database of something else stays as it is."""
        tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master")}
        if not tables and settings is not None:
            header = {"schema": SCHEMA, **self.space.identity, "settings": _canonical(settings)}
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("CREATE TABLE header (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._db.execute(
                "CREATE TABLE points (kind TEXT NOT NULL, number INTEGER NOT NULL, "
                "genes TEXT NOT NULL, accuracy REAL NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (kind, number))"
            )
            self._db.executemany("INSERT INTO header VALUES (?, ?)", header.items())
            self._db.execute("COMMIT")
            return header
        return dict(self._db.execute("SELECT key, value FROM header")) if {"header", "points"} <= tables else {}

    def _checked(self, header: dict[str, str], settings: Mapping[str, Any] | None) -> dict[str, Any]:
        """The settings of the header, if it is one of this space and of these settings."""
        if header.get("schema") != SCHEMA:
            raise UserError(f"{self.path}: expected schema {SCHEMA!r}, got {header.get('schema')!r}")
        self.space.require(header, self.path)
        try:
            found = dict(json.loads(header["settings"]))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self.path}: its settings are garbled ({error}); use another folder") from None
        if settings is not None and header["settings"] != _canonical(settings):
            changed = sorted(k for k in found.keys() | settings if found.get(k) != settings.get(k))
            raise UserError(
                f"{self.path} was collected with another {', '.join(changed)}; call with the same values to go on, "
                "or use another folder"
            )
        return found

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Raises: UserError for what SQLite or the system says of the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path} cannot be {what}: {error}") from None
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path} is not a database of points ({error})") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be {what}: {error.strerror}") from None

    def done(self, kind: Kind) -> set[int]:
        """Numbers of the points that are there."""
        with self._told("read"):
            return {row[0] for row in self._db.execute("SELECT number FROM points WHERE kind = ?", (kind,))}

    def add(self, kind: Kind, number: int, genome: Genes, accuracy: float, seconds: float) -> None:
        """Store one point for good; a point that is there already stays as it is.

        Raises: UserError if it cannot be written; the others stay.
        """
        row = (kind, number, json.dumps(genome.tolist()), accuracy, seconds)
        with self._told("written"):
            self._db.execute("INSERT OR IGNORE INTO points VALUES (?, ?, ?, ?, ?)", row)

    def points(self, kind: Kind) -> Points:
        """All points of a kind, by number.

        Raises: UserError if one is none of the space, or there are more than MAX_POINTS.
        """
        query = "SELECT number, genes, accuracy, seconds FROM points WHERE kind = ? ORDER BY number LIMIT ?"
        with self._told("read"):
            rows = self._db.execute(query, (kind, MAX_POINTS + 1)).fetchall()
        if len(rows) > MAX_POINTS:
            raise UserError(f"{self.path}: expected at most {MAX_POINTS} {kind} points, got more; collect fewer")
        try:
            numbers = np.array([row[0] for row in rows], np.int64)
            genes = np.array([json.loads(row[1]) for row in rows], np.int8).reshape(len(rows), self.space.n_genes)
            accuracy, seconds = np.array([row[2:] for row in rows], np.float64).reshape(len(rows), 2).T
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{self.path}: a {kind} point is garbled ({error}); collect anew in another folder"
            ) from None
        if ((genes < 0) | (genes >= self.space.cardinalities)).any() or not ((accuracy >= 0) & (accuracy <= 1)).all():
            raise UserError(
                f"{self.path}: a {kind} point is none of the space {self.space.name!r}, or its accuracy is not from 0 "
                "to 1; collect anew in another folder"
            )
        held_out = np.array([is_held_out(kind, int(n)) for n in numbers], bool)
        return Points(numbers, genes, accuracy, seconds, held_out)

    def close(self) -> None:
        with self._told("written"):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.close()


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)
