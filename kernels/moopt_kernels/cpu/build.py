"""Which C++ sources this CPU needs, and the library of them, kept in the user's cache: whole, or made anew.

One library holds what this CPU runs: the paths for AVX-512 and AMX where it has them, else that for AVX2, each compiled
with its own flags. The path for AVX2 beside AVX-512 is a library of its own, for comparisons. Processes that start
together wait for the first. A library counts once it has been loaded and its digest lies beside it; it is then used
whatever has become of the compiler. To compile with another one, name it in CXX.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from moopt_kernels.cpu.compiler import INSTALL, accepts, find_compiler, run
from moopt_kernels.dispatch import KernelError
from moopt_kernels.folder import cache_folder

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
NEEDED = ("avx2", "bmi2", "f16c", "fma")
"""What a CPU must have at least, as /proc/cpuinfo names it; Intel since 2013, AMD since 2015."""
HAS_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
HAS_AMX = HAS_AVX512 | {"avx512vbmi", "avx512_bf16", "amx_tile", "amx_bf16"}

COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-w")
PLAIN = ("-O3", "-mavx2", "-mfma", "-mbmi2", "-mf16c")
AVX2 = (*PLAIN, "-fno-tree-vectorize")  # written in vectors; looking for more costs the compiler an eighth of its time
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
AMX = ("-mavx512bf16", "-mamx-tile", "-mamx-bf16")
EXACT = (*PLAIN, "-ffp-contract=off")  # rounds as PyTorch does, operation by operation
HEADERS = ("attention.h", "attention_operators.h", "fields.h", "kernels.h", "tensors.h")

Units = dict[str, tuple[str, ...]]
"""Sources and their flags; what takes the compiler longest comes first, so that cores finish together."""

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


@functools.cache
def load_avx2() -> ctypes.CDLL:
    """The path for AVX2 by itself, on a CPU whose library has better ones.

    Raises:
        KernelError: it cannot be compiled here.
    """
    return ctypes.CDLL(str(library("avx2")))


def library(name: str = "lowbit") -> Path:
    """Where a compiled library is, "lowbit" or "avx2"; it is whole when this returns.

    Raises:
        KernelError: it cannot be compiled here.
        OSError: nor can a temporary folder be written.
    """
    features = cpu_features()
    if missing := [needed for needed in NEEDED if needed not in features]:
        raise KernelError(f"this CPU lacks {', '.join(missing)}; the C++ kernels need x86-64 with {', '.join(NEEDED)}")
    units = avx2_units() if name == "avx2" else main_units(features)
    path = cache_folder() / f"{name}-{_key(units)}.so"
    if _whole(path):
        return path
    try:
        with _alone(path.parent):
            if not _whole(path):
                _compile(units, path)
    except OSError as error:
        log.warning(
            "Cannot keep compiled kernels in %s (%s): they are compiled for this process alone. "
            "Name a folder that can be written in MOOPT_CACHE.", path.parent, error,
        )  # fmt: skip
        path = Path(_own_folder().name) / path.name
        _compile(units, path)
    return path


def main_units(features: frozenset[str]) -> Units:
    """What a CPU with these features runs, and no more."""
    operators: tuple[str, ...] = ("-O1", "-DTORCH_TARGET_VERSION=0x020b000000000000")
    rest: Units = {"rows.cpp": EXACT, "tokens.cpp": EXACT}
    if not features >= HAS_AVX512:
        return {"attention_avx2.cpp": AVX2, "operators.cpp": operators, "gemv_avx2.cpp": AVX2, **rest}
    operators = (*operators, "-DMOOPT_AVX512")
    vectors = (*AVX512, "-mavx512vbmi") if "avx512vbmi" in features else AVX512
    found: Units = {"attention_avx512.cpp": vectors, "operators.cpp": operators, "gemv_avx512.cpp": vectors, **rest}
    if features >= HAS_AMX:
        found |= {"operators.cpp": (*operators, "-DMOOPT_AMX"), "gemm_amx.cpp": (*vectors, *AMX)}
    return found


def avx2_units() -> Units:
    """The path for AVX2 by itself."""
    return {"attention_avx2.cpp": AVX2, "gemv_avx2.cpp": AVX2, "rows.cpp": EXACT}


def cpu_features() -> frozenset[str]:
    """What this CPU can, as /proc/cpuinfo names it; nothing where that cannot be read or is another kind of CPU."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
    return frozenset()


def _key(units: Units) -> str:
    """Of all that a library is made of, but for the version of the compiler: asking for that takes a compiler."""
    digest = hashlib.sha256(repr((os.environ.get("CXX"), torch.__version__, COMMON, units)).encode())
    for source in sorted([*units, *HEADERS]):
        digest.update((SOURCES / source).read_bytes())
    return digest.hexdigest()[:16]


def _whole(path: Path) -> bool:
    """Whether a library is as it was when it had been loaded: mapping one that was cut would kill the process."""
    try:
        return _digest(path) == path.with_suffix(".sha256").read_text()
    except (OSError, ValueError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Alone among processes, with nothing left of those that were killed; the lock goes with its process."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "build.lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.glob(".build-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Kept as long as this process."""
    return tempfile.TemporaryDirectory(prefix="moopt-kernels-")


def _compile(units: Units, path: Path) -> None:
    """A unit a process, as many at once as there are cores; sealed with its digest once it has been loaded."""
    compiler = find_compiler()
    if "gemm_amx.cpp" in units and not accepts(compiler, AMX):  # an old one; PyTorch multiplies many tokens
        units = {unit: tuple(f for f in flags if f != "-DMOOPT_AMX") for unit, flags in units.items()}
        del units["gemm_amx.cpp"]
    torch_folder = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as name:
        folder = Path(name)
        objects = {unit: str(folder / f"{unit}.o") for unit in units}
        common = [*compiler, *COMMON, f"-I{torch_folder / 'include'}"]
        run([[*common, *flags, "-c", str(SOURCES / unit), "-o", objects[unit]] for unit, flags in units.items()])
        made = folder / path.name
        libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        run([[*compiler, "-shared", "-o", str(made), *objects.values(), *libraries]])
        seal = folder / "seal"
        try:
            seal.write_text(_digest(made))
            _rename(made, path)
            ctypes.CDLL(str(path))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise KernelError(f"the C++ compiler wrote no library that can be loaded: {error}; {INSTALL}") from error
        _rename(seal, path.with_suffix(".sha256"))


def _rename(made: Path, path: Path) -> None:
    """To its place, once it is on the disk."""
    with made.open("rb") as file:
        os.fsync(file.fileno())
    made.replace(path)
