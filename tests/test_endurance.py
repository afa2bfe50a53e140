"""Kills: nothing is lost, doubled or another."""

from __future__ import annotations

import pytest
from endurance import Place, killed_collection, killed_training


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("place"))


def test_training_and_collection_survive_kills(place: Place) -> None:
    """The short form of `make endurance`."""
    log = killed_training(place, 2, 1, (40, 20, 20, 40))
    assert "weights equal" in log[-1]
    log += killed_collection(place, 1, 2, (12, 6), workers=1)
    assert "none lost" in log[-1]
    print("\n".join(log))
