"""Kernels are compiled once, whole or not at all; where they cannot be, plain PyTorch runs and one warning says why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moopt_kernels import KernelError
from moopt_kernels.cpu import build
from moopt_kernels.cpu.compiler import find_compiler

ROOT = Path(__file__).parents[3]
needs_avx2 = pytest.mark.skipif(not build.cpu_features() >= set(build.NEEDED), reason="this CPU has no AVX2")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A compiler that does what a line of shell says, with a cache of its own."""

    def written(line: str) -> Path:
        path = tmp_path / "compiler"
        path.write_text(f'#!/bin/sh\necho call "$@" >> {tmp_path}/log\n{line}\n')
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
        return path

    return written


@pytest.fixture(scope="session")
def writes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shell that writes a small library that can be loaded to whatever is asked for."""
    library = tmp_path_factory.mktemp("library") / "small.so"
    source = ["-shared", "-fPIC", "-x", "c", os.devnull]
    subprocess.run([*find_compiler(), *source, "-o", str(library)], check=True)
    return f'while [ $# -gt 1 ]; do [ "$1" = -o ] && [ "$2" != /dev/null ] && cp {library} "$2"; shift; done'


def made(folder: Path) -> list[str]:
    """The lines with which libraries were linked."""
    log = folder / "log"
    return [line for line in log.read_text().splitlines() if "-shared" in line] if log.exists() else []


@needs_avx2
def test_eight_at_once_compile_once(compiler: Callable[[str], Path], writes: str, tmp_path: Path) -> None:
    compiler(writes)
    with ThreadPoolExecutor(8) as pool:
        paths = {future.result() for future in [pool.submit(build.library) for _ in range(8)]}
    assert len(paths) == 1
    assert len(made(tmp_path)) == 1
    assert not list((tmp_path / "kernels").glob(".build-*"))


@needs_avx2
@pytest.mark.compiles
def test_eight_processes_that_start_at_once_build_one_library_and_agree(
    compiler: Callable[[str], Path], tmp_path: Path
) -> None:
    compiler(f'exec {find_compiler()[0]} "$@" -O0')  # quick to compile; the same code
    code = (
        "import torch, moopt_kernels as mk; torch.manual_seed(0)\n"
        "weight = mk.quantize_weight(torch.randn(48, 96), 4, 32)\n"
        "y = [mk.quantized_linear(torch.randn(m, 96).bfloat16(), weight) for m in (1, 40)]\n"
        "print(weight.layout, mk.calls()['quantized_linear', 'cpu'], torch.cat(y).view(torch.int16).tolist())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels"), "MOOPT_KERNELS": "cpu"}
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * 8
    assert len(set(said)) == 1
    assert said[0].startswith("cpu 2 [[")
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 1
    assert len(made(tmp_path)) == 1


@needs_avx2
def test_another_compiler_is_another_library(
    compiler: Callable[[str], Path], writes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiler(writes)
    first = build.library()
    monkeypatch.setenv("CXX", f"{path} -O2")
    assert build.library() != first


@needs_avx2
def test_a_library_outlives_its_compiler(compiler: Callable[[str], Path], writes: str, tmp_path: Path) -> None:
    path = compiler(writes)
    first = build.library()
    before = (tmp_path / "log").read_text()
    path.unlink()
    assert build.library() == first
    assert (tmp_path / "log").read_text() == before


@needs_avx2
@pytest.mark.parametrize("left", [0, 1000, None], ids=["empty", "cut", "unsealed"])
def test_a_damaged_library_is_made_anew(
    compiler: Callable[[str], Path], writes: str, tmp_path: Path, left: int | None
) -> None:
    compiler(writes)
    path = build.library()
    whole = path.read_bytes()
    if left is None:
        path.with_suffix(".sha256").unlink()
    else:
        path.unlink()
        path.write_bytes(whole[:left])
    assert build.library() == path
    assert path.read_bytes() == whole
    assert len(made(tmp_path)) == 2


@needs_avx2
def test_what_a_killed_build_left_is_removed(compiler: Callable[[str], Path], writes: str, tmp_path: Path) -> None:
    (tmp_path / "kernels" / ".build-old").mkdir(parents=True)
    compiler(writes)
    build.library()
    assert not (tmp_path / "kernels" / ".build-old").exists()


FAILURES = {
    "broken": ('echo "fatal error: no cc1plus" >&2; exit 1', r"failed: fatal error: no cc1plus; install a C\+\+17"),
    "silent": ("exit 0", r"wrote no library that can be loaded: .*No such file"),
    "empty": ('while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done', "wrote no library that can be loaded"),
    "no-text": (r"printf 'error \377\376\n' >&2; exit 1", "failed: error \ufffd\ufffd; install"),
    "full": (
        'echo "error: No space left on device" >&2; exit 1',
        "No space left on device; free some, or name another",
    ),
}


@needs_avx2
@pytest.mark.parametrize("name", FAILURES)
def test_a_compiler_that_fails_leaves_nothing_behind(
    compiler: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    line, said = FAILURES[name]
    compiler(line)
    with pytest.raises(KernelError, match=said):
        build.library()
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["build.lock"]


@needs_avx2
def test_a_compiler_that_hangs_is_given_up(compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    compiler("sleep 60 & wait")
    monkeypatch.setattr("moopt_kernels.cpu.compiler.PATIENCE_S", 0.1)
    with pytest.raises(KernelError, match=r"the C\+\+ compiler took longer than 0.1 s"):
        build.library()


@needs_avx2
def test_where_nothing_can_be_kept_it_compiles_for_this_process(
    compiler: Callable[[str], Path], writes: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    compiler(writes)
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path / "file"))
    path = build.library()
    assert path.exists()
    assert tmp_path not in path.parents
    assert "Name a folder that can be written in MOOPT_CACHE" in caplog.text


@needs_avx2
def test_an_old_compiler_builds_without_amx(compiler: Callable[[str], Path], writes: str, tmp_path: Path) -> None:
    compiler(f'case "$*" in *-mamx*) exit 1;; esac; {writes}')
    build.library()
    assert "gemm_amx.cpp" not in (tmp_path / "log").read_text()
    assert "MOOPT_AMX" not in (tmp_path / "log").read_text()


def test_only_what_a_cpu_runs_is_compiled() -> None:
    avx2 = frozenset(build.NEEDED)
    kinds = [build.main_units(avx2 | more) for more in (set(), build.HAS_AVX512, build.HAS_AMX)]
    assert [sorted(unit for unit in kind if "_" in unit) for kind in kinds] == [
        ["attention_avx2.cpp", "gemv_avx2.cpp"],
        ["attention_avx512.cpp", "gemv_avx512.cpp"],
        ["attention_avx512.cpp", "gemm_amx.cpp", "gemv_avx512.cpp"],
    ]


def test_a_compiler_may_be_named_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh -c 'g++ -O2'")
    assert find_compiler()[1:] == ["-c", "g++ -O2"]


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-of-another-age")
    with pytest.raises(KernelError, match=r"CXX=g\+\+-of-another-age is no program; install"):
        find_compiler()


def test_without_a_compiler_plain_pytorch_runs_and_one_warning_says_why(tmp_path: Path) -> None:
    code = (
        "import logging, os, torch, moopt_kernels as mk; logging.basicConfig(format='%(message)s')\n"
        "for _ in range(2): weight = mk.quantize_weight(torch.ones(16, 32), 4, 32)\n"
        "mk.quantized_linear(torch.ones(32), weight); print(weight.layout, mk.calls())\n"
        "os.environ['MOOPT_KERNELS'] = 'cpu'\n"
        "try: mk.choose_layout('cpu')\n"
        "except mk.KernelError as error: print(error)\n"
    )
    environment = os.environ | {"CXX": "none", "MOOPT_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT / "kernels")}
    environment.pop("MOOPT_KERNELS", None)
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(
        "plain {('quantize_weight', 'reference'): 2, ('quantized_linear', 'reference'): 1}\n"
    )
    assert "MOOPT_KERNELS=cpu cannot be honoured on cpu" in found.stdout
    assert found.stderr.count("The fast low-bit kernels do not run here, slower plain PyTorch does") == 1
