"""Files are written whole or not at all."""

from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Write a whole file or none."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
