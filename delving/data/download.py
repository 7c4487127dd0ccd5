"""Files from the network: each ends up whole and with the expected hash, or not there at all."""

import contextlib
import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from delving.beside import name_beside, remove_dead
from delving.record import FULL
from delving.words import shown

SILENCE = 30.0  # seconds without a byte after which the server counts as gone


def download(url: str, root: Path, *, md5: str, again: str) -> Path:
    """The path of a URL's file below root, downloaded unless it is already there.

    Args:
        again: the command to run once the file has been downloaded by hand, for the message.

    Raises:
        RuntimeError: the file cannot be downloaded, or has another hash; the message says what to
            do instead. No new folder and no partial file is left behind.
    """
    target = root / url.rsplit("/", 1)[1]
    remove_dead(root, target.name)
    if target.is_file() and _md5(target) == md5:
        return target
    new = [folder for folder in (root, *root.parents) if not folder.exists()]
    part = name_beside(target)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _fetch(url, part)
        if _md5(part) != md5:
            raise http.client.HTTPException(f"{part.stat().st_size:,} bytes came, not those meant")
        return part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        if _is_of_a_file(error):
            raise OSError(error.errno, error.strerror, error.filename or str(part)) from error
        raise RuntimeError(_advice(url, target, md5, again, error)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
        for folder in new:
            with contextlib.suppress(OSError):  # one that holds the file stays
                folder.rmdir()


def _is_of_a_file(error: Exception) -> bool:
    """Whether the error is this disk's, not the network's."""
    local = isinstance(error, OSError) and not isinstance(error, urllib.error.URLError)
    return local and (error.filename is not None or error.errno in FULL)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch(url: str, to: Path) -> None:
    from rich.progress import wrap_file

    from delving.display import make_console

    request = urllib.request.Request(url, headers={"User-Agent": "delving"})
    screen = make_console(stderr=True)
    with (
        urllib.request.urlopen(request, timeout=SILENCE) as answer,
        wrap_file(answer, answer.length or 0, description=to.name, console=screen, transient=True)
        as counted,
        open(to, "wb") as file,
    ):  # fmt: skip
        shutil.copyfileobj(counted, file, 2**20)


def _advice(url: str, target: Path, md5: str, again: str, error: Exception) -> str:
    why = shown(getattr(error, "reason", None) or str(error) or type(error).__name__, most=200)
    there = f" in place of the one there, whose MD5 is not {md5}" if target.exists() else ""
    return (f"{url} cannot be downloaded ({why}). Download it by hand to {target}{there}, then "
            f"again: {again}")  # fmt: skip
