"""UTF-8 for files and the terminal, whatever the encoding of the system."""

from __future__ import annotations

import codecs
import io
import locale
import os
import subprocess
import sys
from contextlib import suppress


def use_utf8() -> None:
    """Read and write files in UTF-8 whatever the system's encoding, and replace what the terminal cannot show.

    Recipes, logs and configurations are opened by libraries that ask the system for its encoding; Python's UTF-8 mode,
    which must be chosen before Python starts, applies to all of them. From Python 3.15 on it is the default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":
        return
    encoding = f"{getattr(sys.stdout, 'encoding', None) or 'utf-8'}:replace"
    environment = {"PYTHONIOENCODING": encoding, **os.environ, "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "minrnn_lightning", *sys.argv[1:]]
    if sys.platform == "win32":  # which has no exec that keeps the console
        with suppress(KeyboardInterrupt):  # the other process gets it too
            sys.exit(subprocess.call(command, env=environment))
    os.execve(sys.executable, command, environment)
