"""Fetching one public file after the user's yes: HTTPS, size known and capped, resumed, verified, moved into place whole.

The only file of the library that opens a connection. Only `bundle.published` imports it, and only `velvetmed models add` that.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from VelvetMedLib.errors import DownloadError

Progress = Callable[[float, str, float | None], None]
MOST_BYTES = 8 << 30
_PIECE = 1 << 20
_TIMEOUT_S = 60.0
_LOCAL = {"127.0.0.1", "localhost", "::1"}
_AGENT = {"User-Agent": "velvetmed", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Offer:
    """What a server says of a file before it is fetched. sha256: the source's published hash, empty where it publishes none."""

    url: str
    bytes: int
    sha256: str
    tag: str


class _Secure(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTPS only (plain HTTP on this very machine is a mirror of the user's own)."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing: what a hub says of a file stands in the answer that redirects to its store."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return None


def check_address(url: str) -> None:
    """Raises DownloadError unless the address is HTTPS, or plain HTTP on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL):
        return
    raise DownloadError(
        "The file would travel over an address that cannot be trusted; nothing was fetched.",
        found=f"an address of kind {parts.scheme or 'unknown'}",
        expected="https",
        next_step="Fetch the file by other means and give it with --weights.",
    )


def offer(url: str) -> Offer:
    """Ask for size and published hash (the hub's `X-Linked-*` headers) without fetching. Raises DownloadError."""
    headers = _headers(url)
    size = headers.get("x-linked-size") or headers.get("content-length")
    if size is None or not size.isdecimal() or not 0 < int(size) <= MOST_BYTES:
        raise _unlike("a file without a size, or too large", f"a size of at most {MOST_BYTES >> 30} GB")
    tag = (headers.get("x-linked-etag") or headers.get("etag") or "").removeprefix("W/").strip('"')
    published = (headers.get("x-linked-etag") or "").strip('"').lower()
    return Offer(url, int(size), published if re.fullmatch(r"[0-9a-f]{64}", published) else "", tag)


def _headers(url: str) -> dict[str, str]:
    """The headers of a HEAD request, those of the first answer before those of later ones."""
    opener = urllib.request.build_opener(_Stay)
    found: dict[str, str] = {}
    for _ in range(5):
        check_address(url)
        request = urllib.request.Request(url, method="HEAD", headers=_AGENT)
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                return {**{k.lower(): v for k, v in answer.headers.items()}, **found}
        except urllib.error.HTTPError as error:
            with error:
                moved = error.headers.get("location") if 300 <= error.code < 400 else None
                if moved is None:
                    raise _unreachable(f"the server's answer {error.code}") from None
                found = {**{k.lower(): v for k, v in error.headers.items() if k.lower().startswith("x-linked")}, **found}
            url = urljoin(url, moved)
        except OSError as error:
            raise _unreachable(_reason(error)) from None
    raise _unreachable("more than five redirects")


def fetch(wanted: Offer, target: Path, progress: Progress | None = None) -> str:
    """Fetch to `target`, resuming `target` + ".part"; returns the SHA-256 of what arrived. Raises DownloadError.

    What was interrupted stays in the part file, beside the tag under which the server knew it; another tag starts anew. The whole
    file is hashed in the end, the resumed bytes too. A wrong size or hash leaves nothing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part, mark = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    known = {"bytes": wanted.bytes, "tag": wanted.tag, "sha256": wanted.sha256}
    if not _same(mark, known):
        part.unlink(missing_ok=True)
    mark.write_text(json.dumps(known), encoding="utf-8")
    _check_space(target.parent, wanted.bytes - (part.stat().st_size if part.is_file() else 0))
    have = part.stat().st_size if part.is_file() else 0
    if have > wanted.bytes:
        part.unlink()
        have = 0
    if have < wanted.bytes:
        _append(wanted, part, have, progress)
    digest = hashlib.sha256()
    with part.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
        os.fsync(stream.fileno())
    found = digest.hexdigest()
    if part.stat().st_size != wanted.bytes or (wanted.sha256 and found != wanted.sha256):
        part.unlink()
        mark.unlink()
        raise _unlike(
            f"sha256 {found[:16]}...", f"the published sha256 {wanted.sha256[:16]}..." if wanted.sha256 else f"{wanted.bytes} bytes"
        )
    os.replace(part, target)
    mark.unlink()
    return found


def _append(wanted: Offer, part: Path, have: int, progress: Progress | None) -> None:
    asked = dict(_AGENT)
    if have:
        asked["Range"] = f"bytes={have}-"
    request = urllib.request.Request(wanted.url, headers=asked)
    try:
        with urllib.request.build_opener(_Secure).open(request, timeout=_TIMEOUT_S) as answer:
            continues = answer.status == 206 and str(answer.headers.get("content-range", "")).startswith(f"bytes {have}-")
            with part.open("ab" if have and continues else "wb") as out:
                done = out.tell()
                while piece := answer.read(_PIECE):
                    done += len(piece)
                    if done > wanted.bytes:
                        raise _unlike("more bytes than the server said", f"{wanted.bytes} bytes")
                    out.write(piece)
                    if progress is not None:
                        progress(done / wanted.bytes, "downloading", None)
                out.flush()
                os.fsync(out.fileno())
    except urllib.error.HTTPError as error:
        with error:
            raise _unreachable(f"the server's answer {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(_reason(error)) from None
    if part.stat().st_size < wanted.bytes:
        raise _unreachable(f"the connection ended after {part.stat().st_size} of {wanted.bytes} bytes")


def _same(mark: Path, known: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(mark.read_text(encoding="utf-8")) == dict(known))
    except (OSError, ValueError):
        return False


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DownloadError(
            "There is not enough space for the download.",
            found=f"{free / 1e9:.1f} GB free in the folder of added models",
            expected=f"{need / 1e9:.1f} GB",
            next_step="Free some space, or choose another folder with the environment variable VELVETMED_DATA.",
        )


def _reason(error: Exception) -> str:
    """In our words: the system's own text can hold addresses with passwords."""
    inner = getattr(error, "reason", error)
    if "certificate" in str(inner).lower():
        return "the server's certificate was not accepted"
    return "no connection to the server" if isinstance(error, urllib.error.URLError) else "the connection broke"


def _unreachable(found: str) -> DownloadError:
    return DownloadError(
        "The file could not be fetched.",
        found=found,
        expected="an answer from the source",
        next_step="Check the network and proxy settings and run the command again: what has arrived is kept and taken up.",
    )


def _unlike(found: str, expected: str) -> DownloadError:
    return DownloadError(
        "The file is not what the source said; nothing of it was kept.",
        found=found,
        expected=expected,
        next_step="Try again; if it happens again, do not use this source.",
    )
