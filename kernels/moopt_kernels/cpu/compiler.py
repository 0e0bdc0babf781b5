"""The C++ compiler: which one, and running it with an end to its time and to its words."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from moopt_kernels.dispatch import KernelError

INSTALL = "install a C++17 compiler (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or name one in CXX"
PATIENCE_S = 300.0
"""What one call of the compiler may take; it takes some 5 s on an idle core."""


def find_compiler() -> list[str]:
    """The command of the C++ compiler: $CXX with its arguments, else g++, clang++ or c++.

    Raises:
        KernelError: there is none.
    """
    named = os.environ.get("CXX")
    try:
        commands = [shlex.split(named)] if named else [["g++"], ["clang++"], ["c++"]]
    except ValueError as error:
        raise KernelError(f"CXX={named} is no command: {error}; {INSTALL}") from error
    for command in commands:
        if command and (found := shutil.which(command[0])):
            return [found, *command[1:]]
    raise KernelError(f"{f'CXX={named} is no program' if named else 'there is no C++ compiler'}; {INSTALL}")


def accepts(compiler: Sequence[str], flags: Sequence[str]) -> bool:
    """Whether a compiler knows these flags.

    Raises:
        KernelError: it cannot be run.
    """
    return _call([*compiler, *flags, "-x", "c++", "-E", os.devnull, "-o", os.devnull])[0] == 0


def run(commands: Sequence[list[str]]) -> None:
    """As many at once as there are cores; waits for those that run, whatever becomes of the others.

    Raises:
        KernelError: one failed, or took too long.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for code, said in pool.map(_call, commands):
            if code:
                lines = said.splitlines()
                first = next((line for line in lines if "error" in line), lines[0] if lines else "it says nothing")
                full = "No space left" in said
                advice = "free some, or name another folder in MOOPT_CACHE" if full else INSTALL
                raise KernelError(f"the C++ compiler failed: {first.strip()}; {advice}")


def _call(command: list[str]) -> tuple[int, str]:
    """Exit status and what was said on stderr; what a compiler started ends with it."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            errors="replace", process_group=0,
        )  # fmt: skip
    except OSError as error:
        raise KernelError(f"the C++ compiler cannot be run: {error}; {INSTALL}") from error
    with process:
        try:
            said = process.communicate(timeout=PATIENCE_S)[1]
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"the C++ compiler took longer than {PATIENCE_S:g} s: {' '.join(command[:2])}") from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said
