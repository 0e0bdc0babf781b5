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

ROOT = Path(__file__).parents[3]
needs_avx2 = pytest.mark.skipif(not build.cpu_features() >= set(build.NEEDED), reason="this CPU has no AVX2")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A compiler that does what a line of shell says, with a cache of its own."""

    def made(line: str) -> Path:
        path = tmp_path / "compiler"
        path.write_text(f'#!/bin/sh\necho call "$@" >> {tmp_path}/log\n{line}\n')
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
        return path

    return made


WRITES = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && [ "$2" != /dev/null ] && echo built > "$2"; shift; done'


@needs_avx2
def test_eight_at_once_compile_once(compiler: Callable[[str], Path], tmp_path: Path) -> None:
    compiler(WRITES)
    with ThreadPoolExecutor(8) as pool:
        paths = {future.result() for future in [pool.submit(build.library) for _ in range(8)]}
    assert len(paths) == 1
    assert paths.pop().read_text() == "built\n"
    assert sum("-shared" in line for line in (tmp_path / "log").read_text().splitlines()) == 1
    assert not list((tmp_path / "kernels").glob(".build-*"))


@needs_avx2
@pytest.mark.compiles
def test_eight_processes_that_start_at_once_build_one_library_and_agree(
    compiler: Callable[[str], Path], tmp_path: Path
) -> None:
    compiler(f'exec {build.find_compiler()} "$@" -O0')  # quick to compile; the same code
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
    assert sum("-shared" in line for line in (tmp_path / "log").read_text().splitlines()) == 1


@needs_avx2
def test_another_compiler_is_another_library(compiler: Callable[[str], Path]) -> None:
    compiler(f'[ "$1" = --version ] && echo 12.2; {WRITES}')
    first = build.library()
    compiler(f'[ "$1" = --version ] && echo 13.1; {WRITES}')
    assert build.library() != first


@needs_avx2
def test_a_broken_compiler_leaves_nothing_behind(compiler: Callable[[str], Path], tmp_path: Path) -> None:
    compiler('[ "$1" = --version ] && exit; echo "fatal error: no cc1plus" >&2; exit 1')
    with pytest.raises(
        KernelError, match=r"the C\+\+ compiler failed: fatal error: no cc1plus; install a C\+\+17 compiler"
    ):
        build.library()
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".lock"]


@needs_avx2
def test_an_old_compiler_builds_without_amx(compiler: Callable[[str], Path], tmp_path: Path) -> None:
    compiler(f'case "$*" in *-mamx*) exit 1;; esac; {WRITES}')
    build.library()
    assert "gemm_amx" not in (tmp_path / "log").read_text()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-of-another-age")
    with pytest.raises(KernelError, match=r"CXX=g\+\+-of-another-age is no program; install"):
        build.find_compiler()


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
