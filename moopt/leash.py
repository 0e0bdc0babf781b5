"""Programs and folders that end when we do, however that is: a shell waits for the end of a pipe that we alone hold."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_GUARD = "exec 3<&0 </dev/null; { read -r _ <&3; kill -KILL 0; } >/dev/null 2>&1 & exec 3<&-; "
"""Leaves a shell behind that kills its process group when the pipe it was given as standard input ends."""


def hold(leash: int) -> None:
    """Have our process group killed when the other end of the pipe `leash` is closed, by its owner or its death."""
    subprocess.run(["/bin/sh", "-c", _GUARD], stdin=leash, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def leashed(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A program in a session of its own, its output in pipes. It and all that it starts end with the block, or us."""
    end, leash = os.pipe()
    try:
        command = ["/bin/sh", "-c", f'{_GUARD} exec "$@"', "sh", *words]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=end, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        os.close(end)
        os.close(leash)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A folder that is removed at the end of the block, or of us."""
    path = tempfile.mkdtemp(prefix=prefix)
    end, leash = os.pipe()
    command = ["/bin/sh", "-c", 'read -r _; rm -rf -- "$1"', "sh", path]
    with subprocess.Popen(command, stdin=end, start_new_session=True):
        os.close(end)
        try:
            yield path
        finally:
            os.close(leash)
