"""`python -m models data NAME`: a public data set, fetched or taken from a folder, verified, where loaders look for it.

Nothing is written before everything is verified: each file that a loader reads has its SHA-256 in anabranch.datasets.
"""

import http.client
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console
from rich.progress import Progress

from anabranch.datasets import LOADERS, SHIPPED, SOURCES
from anabranch.datasets.source import Source, datasets_folder, digest
from fl_protocol.durable import write_durably
from fl_protocol.errors import ConfigError
from models.archives import Archive, check_npz, converted

TIMEOUT_S = 30.0  # without a byte
_PIECE = 1 << 16
Advance = Callable[[int, int | None], None]  # bytes so far, and of how many where the server says so

console = Console()


def fetch_data(
    name: Annotated[str, typer.Argument(help="a data set, see docs/datasets.md")],
    origin: Annotated[
        Path | None, typer.Option("--from", help="a folder with the published archive, or with its files")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="default: $ANABRANCH_DATASETS, or ../shared/datasets")] = None,
) -> None:
    """Fetch a public data set, verify it, and write what its loader reads."""
    source = source_of(name)
    files = obtain(source, origin)
    folder = to or datasets_folder()
    try:
        for path, content in files.items():
            write_durably(folder / path, content)
            console.print(f"{folder / path}  {len(content):,} bytes, verified")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error}", "give another folder with --to") from None
    if name in SHIPPED:
        console.print(f"{name} ships with Anabranch: nothing needs these files")


def source_of(name: str) -> Source:
    """Where the data set comes from. Raises `ConfigError` where there is nothing to fetch."""
    if name in SOURCES:
        return SOURCES[name]
    if name in LOADERS:
        raise ConfigError(f"there is nothing to fetch for {name}: it ships with Anabranch", "see docs/datasets.md")
    raise ConfigError(f"there is no data set {name!r}", f"one of: {', '.join(SOURCES)}")


def obtain(source: Source, folder: Path | None) -> dict[str, bytes]:
    """What the loader reads: path -> bytes, verified. Raises `ConfigError`; whatever it is, nothing was written."""
    files = converted(folder, iter(source.files)) if folder else None
    if files is None:
        published = Archive.of_folder(folder) if folder else Archive.of_downloads(_fetch_all(source))
        try:
            files = dict(source.convert(published))
        except (ValueError, IndexError) as error:  # a cell that is no number, a line that is too short
            raise ConfigError(
                f"the files are not in the published format: {error}", "fetch the archive again"
            ) from None
    verify(source, files)
    return files


def verify(source: Source, files: Mapping[str, bytes]) -> None:
    """Hold every file against its SHA-256. Raises `ConfigError`."""
    for path, expected in source.files.items():
        try:
            if path.endswith(".npz"):
                check_npz(path, files[path])
            found = digest(path, files[path])
        except (ValueError, KeyError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path} cannot be read: {error}", "nothing was written; fetch it again") from None
        if found != expected:
            raise ConfigError(
                f"{path} is not the data set that its models were measured on: SHA-256 {found}, expected {expected}",
                "nothing was written; the file is damaged, or its publisher has changed it",
            )


def _fetch_all(source: Source) -> dict[str, bytes]:
    fetched = {}
    with Progress(console=console, transient=True) as progress:
        for url in source.urls:
            name = unquote(urlsplit(url).path).rpartition("/")[2]
            fetched[name] = fetch(url, source.max_bytes, _bar(progress, name))
    return fetched


def _bar(progress: Progress, name: str) -> Advance:
    bar = progress.add_task(name, total=None)
    return lambda done, of: progress.update(bar, completed=done, total=of)


def fetch(url: str, max_bytes: int, advance: Advance, timeout_s: float = TIMEOUT_S) -> bytes:
    """What is at an http or https address. Raises `ConfigError`: not there, silent, cut off, or larger than allowed."""
    hint = "or take the files from elsewhere, and give their folder with --from"
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{url} is not an http or https address", hint)
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:  # noqa: S310  (the scheme was looked at)
            length = response.headers.get("Content-Length")
            of = int(length) if length and length.isdecimal() else None
            while piece := response.read(_PIECE):
                content += piece
                if len(content) > max_bytes:
                    raise ConfigError(f"{url} is larger than {max_bytes:,} bytes", hint)
                advance(len(content), of)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConfigError(f"cannot fetch {url}: {error}", hint) from None
    if of is not None and len(content) != of:
        raise ConfigError(f"{url} ended after {len(content):,} of {of:,} bytes", hint)
    return bytes(content)
