"""Made-up cases for tests of stores and searches, and the slow, obvious search that the fast ones must equal."""

from __future__ import annotations

from typing import Any

import numpy as np

from VelvetMedLib.tasks.store import Facts, Item, Where

KEY, DIMENSION, REGION_DIMENSION = "k" * 64, 16, 7
FINDINGS, ORGANS = ("lung_nodule", "pleural_effusion", "liver_lesion"), ("liver", "heart", "spleen")


def facts(key: str = KEY) -> Facts:
    return Facts(encoding_key=key, dimension=DIMENSION, region_dimension=REGION_DIMENSION)


def unit(*shape: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_items(count: int, first: int = 0) -> list[Item]:
    """Cases with every combination of findings, organs, sources and texts."""
    made = []
    for n in range(first, first + count):
        named = {name: (n // 3**m) % 3 for m, name in enumerate(FINDINGS)}
        made.append(
            Item(
                volume_sha256=f"volume{n}",
                study=unit(DIMENSION, seed=n),
                id=f"case{n:03d}" if n % 4 else None,
                present=tuple(name for name, state in named.items() if state == 1),
                absent=tuple(name for name, state in named.items() if state == 2),
                source="report" if n % 5 == 0 else "model",
                text=f"Nothing of note in {n}." if n % 2 else None,
                picture=f"picture{n}".encode() if n % 7 else None,
                centers={"liver": (1.0, 2.5, -float(n))},
                regions={organ: unit(REGION_DIMENSION, seed=1000 * (m + 1) + n) for m, organ in enumerate(ORGANS) if (n >> m) & 1},
                match_tokens=np.full((2, 3), n, np.float16) if n % 2 else None,
                place=f"/scans/DOE^JANE-{n}.nii.gz" if n % 3 else None,
            )
        )
    return made


def sorted_by_hand(items: list[Item], query: np.ndarray, count: int, where: Where, region: str | None) -> list[tuple[int, float]]:
    """Numbers (from 1, in the order of addition) and cosines: look at every case, sort all, cut."""
    found = []
    for number, item in enumerate(items, start=1):
        vector = item.study if region is None else item.regions.get(region)
        wanted: list[Any] = [
            vector is not None,
            set(where.present) <= set(item.present),
            set(where.absent) <= set(item.absent),
            set(where.organs) <= set(item.regions),
            where.source in (None, item.source),
            item.text is not None or not where.with_text,
            item.volume_sha256 != where.exclude,
        ]
        if all(wanted):
            found.append((number, float(np.dot(vector.astype(np.float64), query.astype(np.float64)))))
    return sorted(found, key=lambda pair: -pair[1])[:count]
