"""Where the cases of a retrieval index are kept: a folder on this machine, or a database that the user names."""

from __future__ import annotations

from pathlib import Path

from VelvetMedLib.tasks.store.base import Entry, Facts, Item, Store, Where, refuse
from VelvetMedLib.tasks.store.database import DatabaseStore, is_address
from VelvetMedLib.tasks.store.folder import FolderStore

__all__ = ["Entry", "Facts", "Item", "Store", "Where", "create_store", "is_address", "open_store", "refuse", "store_exists"]


def store_exists(place: Path | str) -> bool:
    """Whether an index of any version is there."""
    return DatabaseStore.exists(str(place)) if is_address(place) else FolderStore.exists(Path(place))


def open_store(place: Path | str) -> Store:
    """The store of an index folder or of a `postgresql://` address. Raises IndexMismatchError."""
    return DatabaseStore(str(place)) if is_address(place) else FolderStore(Path(place))


def create_store(place: Path | str, facts: Facts) -> Store:
    """A new, empty store. Raises IndexMismatchError where something else stands in its place."""
    return DatabaseStore.create(str(place), facts) if is_address(place) else FolderStore.create(Path(place), facts)
