"""From a view of a case to one HTML file: templates, script and style inlined, and a policy that lets nothing else run or load."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from VelvetMedLib import DRAFT_DISCLAIMER, RESEARCH_USE_ONLY, __version__
from VelvetMedLib.errors import UsageError
from VelvetMedLib.exports import niivue
from VelvetMedLib.exports.embed import PageImages
from VelvetMedLib.exports.pictures import PLANES, data_uri, picture

if TYPE_CHECKING:
    from jinja2 import Environment

WINDOWS: tuple[tuple[str, int, int], ...] = (
    ("Soft tissue", -160, 240),
    ("Lung", -1350, 150),
    ("Bone", -500, 1300),
    ("Liver", -15, 135),
    ("Vessels", -130, 470),
)
"""Name, lowest and highest HU shown. The first is the one a page opens with."""


def case_page(
    view: Mapping[str, Any], images: PageImages | None, niivue_script: str | None, *, siblings: Mapping[str, Any] | None = None
) -> str:
    """One case as one HTML document; without `niivue_script` it shows still pictures instead of the viewer."""
    colors = segment_colors(view)
    start = start_ras_mm(view, images)
    script = _asset("viewer.js") + "\n" + _asset("panel.js")
    style = _asset("page.css")
    viewer = niivue_script if images is not None else None
    return (
        _environment()
        .get_template("case.html.j2")
        .render(
            page=view,
            siblings=siblings,
            css=_trusted(style),
            script=_trusted(script),
            niivue=_trusted(viewer or ""),
            niivue_version=niivue.VERSION,
            niivue_licence=_asset("niivue-licence.txt"),
            policy=policy(scripts=[text for text in (viewer, script) if text], style=style),
            windows=[{"name": name, "low": low, "high": high} for name, low, high in WINDOWS],
            picture=None if images is None else _picture_facts(images),
            stills=[] if images is None else [{"plane": plane, "uri": _still(images, colors, plane, start)} for plane in PLANES],
            data=_script_data(view, images, start) | {"has_viewer": viewer is not None},
            how_to_fetch=niivue.HOW,
        )
    )


def index_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The list of cases as one HTML document."""
    style = _asset("page.css")
    page = {"disclaimers": [RESEARCH_USE_ONLY, DRAFT_DISCLAIMER], "version": __version__}
    return (
        _environment()
        .get_template("index.html.j2")
        .render(page=page, cases=rows, css=_trusted(style), policy=policy(scripts=[], style=style))
    )


def thumbnail(view: Mapping[str, Any], images: PageImages | None) -> str | None:
    """A coronal picture through the place the case page opens at."""
    return None if images is None else _still(images, segment_colors(view), "coronal", start_ras_mm(view, images))


def policy(*, scripts: Sequence[str], style: str) -> str:
    """Content security policy: the given scripts and style by their hashes, pictures from the page itself, no network at all.

    Text from a case that slipped through the escaping could therefore still not run.
    """
    allowed = " ".join(f"'sha256-{_hash(text)}'" for text in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'sha256-{_hash(style)}'; img-src data: blob:; "
        "connect-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def segment_colors(view: Mapping[str, Any]) -> dict[int, tuple[int, int, int]]:
    """Colour of each label, 0 to 255."""
    rows = [row for group in view["segments"] for row in group["rows"]]
    return {row["label"]: tuple(int(row["color"][at : at + 2], 16) for at in (1, 3, 5)) for row in rows}  # type: ignore[misc]


def start_ras_mm(view: Mapping[str, Any], images: PageImages | None) -> tuple[float, float, float]:
    """Where a page opens: the first present finding, else the first uncertain one, else the middle of the scan."""
    for state in ("present", "uncertain"):
        for row in view["findings"]:
            if row["state"] == state and row["link"] is not None:
                x, y, z = view["links"][row["link"]]["center_ras_mm"]
                return (x, y, z)
    if images is None:
        return (0.0, 0.0, 0.0)
    middle = [(size - 1) / 2 for size in reversed(images.ct_kji.shape)]
    x, y, z = (images.ijk_to_ras[:3, :3] @ middle + images.ijk_to_ras[:3, 3]).tolist()
    return (x, y, z)


def _script_data(view: Mapping[str, Any], images: PageImages | None, start: Sequence[float]) -> dict[str, Any]:
    colors = segment_colors(view)
    rows = [row for group in view["segments"] for row in group["rows"]]
    return {
        "disclaimers": view["disclaimers"],
        "segments": [{"label": row["label"], "name": row["name"], "kind": row["kind"], "color": colors[row["label"]]} for row in rows],
        "links": view["links"],
        "has_ct": images is not None and images.has_ct,
        "has_labels": images is not None and images.labels_base64 is not None,
        "spacing_mm": None if images is None else images.spacing_mm,
        "start_ras_mm": list(start),
        "first_window": list(WINDOWS[0][1:]),
    }


def _picture_facts(images: PageImages) -> dict[str, Any]:
    return {
        "ct": _trusted(images.ct_base64),
        "labels": _trusted(images.labels_base64 or ""),
        "has_ct": images.has_ct,
        "has_labels": images.labels_base64 is not None,
        "spacing_mm": images.spacing_mm,
    }


def _still(images: PageImages, colors: Mapping[int, tuple[int, int, int]], plane: str, at: tuple[float, float, float]) -> str:
    return data_uri(picture(images.ct_kji, images.labels_kji, images.ijk_to_ras, colors, plane=plane, at_ras_mm=at))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _trusted(text: str) -> Any:
    """Marks text that we or the pinned viewer wrote, never anything of a case, as needing no escaping."""
    from markupsafe import Markup

    if "</script" in text.lower():
        raise ValueError("an inlined script must not contain its own end tag")
    return Markup(text)


def _asset(name: str) -> str:
    # Line ends are normalised because the browser does so before it hashes a script for the policy.
    return (files("VelvetMedLib") / "assets" / "pages" / name).read_text(encoding="utf-8").replace("\r\n", "\n")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise UsageError(
            "Review pages cannot be written by this Python.",
            found="the package jinja2 is not installed",
            expected="VelvetMed with its [review] extra",
            next_step='Run `python -m pip install "velvetmed[review]"`, then write the pages again.',
        ) from error
    return Environment(loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
