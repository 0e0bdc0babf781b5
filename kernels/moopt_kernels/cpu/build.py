"""Compiles the C++ kernels at first use, keeps the library in the user's cache, and loads it.

One library holds the paths for AVX2, AVX-512 and AMX, each compiled with its own flags, and asks the CPU at run time:
it never faults on an older one. Processes that start together wait for the first; a library is whole or not there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from moopt_kernels.dispatch import KernelError

SOURCES = Path(__file__).parent
NEEDED = ("avx2", "bmi2", "f16c", "fma")
"""What a CPU must have at least, as /proc/cpuinfo names it; Intel since 2013, AMD since 2015."""

COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-w")
PLAIN = ("-O3", "-mavx2", "-mfma", "-mbmi2", "-mf16c")
AVX2 = (*PLAIN, "-fno-tree-vectorize")  # written in vectors; looking for more costs the compiler an eighth of its time
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vbmi", "-mavx512vnni")
AMX = ("-mavx512bf16", "-mamx-tile", "-mamx-bf16")
UNITS: dict[str, tuple[str, ...]] = {
    "attention_avx512.cpp": AVX512,
    "attention_avx2.cpp": AVX2,
    "operators.cpp": ("-O1", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DMOOPT_AMX"),
    "gemv_avx512.cpp": AVX512,
    "gemm_amx.cpp": (*AVX512, *AMX),
    "gemv_avx2.cpp": AVX2,
    "rows.cpp": (*PLAIN, "-ffp-contract=off"),  # rounds as PyTorch does, operation by operation
    "tokens.cpp": (*PLAIN, "-ffp-contract=off"),
}
"""Sources and their flags; what takes the compiler longest comes first, so that cores finish together."""
HEADERS = ("attention.h", "fields.h", "kernels.h")
INSTALL = "install a C++17 compiler (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or name one in CXX"

_loaded: ctypes.CDLL | None = None
_failure: str | None = None


def load() -> ctypes.CDLL:
    """The library, its operators registered with PyTorch; compiled if it never was.

    Raises:
        KernelError: this CPU or its compiler cannot; says why and what to install. Asked again, says it at once.
    """
    global _loaded, _failure
    if _failure is not None:
        raise KernelError(_failure)
    if _loaded is None:
        try:
            path = str(library())
            torch.ops.load_library(path)
            _loaded = ctypes.CDLL(path)
        except (KernelError, OSError) as error:
            _failure = str(error)
            raise KernelError(_failure) from error
    return _loaded


def library() -> Path:
    """Where the compiled library is; it is there when this returns.

    Raises:
        KernelError: it cannot be compiled here.
    """
    features = cpu_features()
    if missing := [name for name in NEEDED if name not in features]:
        raise KernelError(f"this CPU lacks {', '.join(missing)}; the C++ kernels need x86-64 with {', '.join(NEEDED)}")
    compiler = find_compiler()
    units = dict(UNITS)
    if not _accepts(compiler, AMX):
        del units["gemm_amx.cpp"]
        units["operators.cpp"] = tuple(flag for flag in units["operators.cpp"] if flag != "-DMOOPT_AMX")
    path = cache_folder() / f"lowbit-{_key(compiler, units, features)}.so"
    if not path.exists():
        with _locked(path):
            if not path.exists():
                _compile(compiler, units, path)
    return path


def cache_folder() -> Path:
    """Where compiled kernels are kept: kernels under $MOOPT_CACHE, else under moopt in $XDG_CACHE_HOME or ~/.cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MOOPT_CACHE") or home / "moopt") / "kernels"


def cpu_features() -> frozenset[str]:
    """What this CPU can, as /proc/cpuinfo names it; nothing where that cannot be read or is another kind of CPU."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
    return frozenset()


def find_compiler() -> str:
    """The C++ compiler: $CXX, else g++, clang++ or c++.

    Raises:
        KernelError: there is none.
    """
    named = os.environ.get("CXX")
    for name in [named] if named else ["g++", "clang++", "c++"]:
        if found := shutil.which(name):
            return found
    raise KernelError(f"{f'CXX={named} is no program' if named else 'there is no C++ compiler'}; {INSTALL}")


def _accepts(compiler: str, flags: Sequence[str]) -> bool:
    command = [compiler, *flags, "-x", "c++", "-E", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def _key(compiler: str, units: dict[str, tuple[str, ...]], features: frozenset[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    known = [f for f in sorted(features) if f.startswith(("avx", "amx"))]
    digest = hashlib.sha256(repr((compiler, version, torch.__version__, COMMON, units, known)).encode())
    for source in sorted([*units, *HEADERS]):
        digest.update((SOURCES / source).read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among processes; the lock is let go of when a process dies, too."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, units: dict[str, tuple[str, ...]], path: Path) -> None:
    """A unit a process, as many at once as there are cores; the library is renamed to its place when it is whole."""
    packages = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as name:
        folder = Path(name)
        objects = {unit: str(folder / f"{unit}.o") for unit in units}
        common = [*COMMON, f"-I{packages / 'include'}"]
        _run(
            [compiler, *common, *flags, "-c", str(SOURCES / unit), "-o", objects[unit]] for unit, flags in units.items()
        )
        whole = folder / path.name
        _run(
            [
                [
                    compiler,
                    "-shared",
                    "-o",
                    str(whole),
                    *objects.values(),
                    f"-L{packages / 'lib'}",
                    "-ltorch_cpu",
                    "-lc10",
                ]
            ]
        )
        whole.rename(path)


def _run(commands: Iterable[list[str]]) -> None:
    """As many at once as there are cores; waits for every one, whatever becomes of the others."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ended = list(pool.map(functools.partial(subprocess.run, capture_output=True, text=True), commands))
    for process in ended:
        if process.returncode:
            lines = process.stderr.splitlines()
            first = next((line for line in lines if "error" in line), lines[0] if lines else "it says nothing")
            raise KernelError(f"the C++ compiler failed: {first.strip()}; {INSTALL}")
