import logging
import multiprocessing
from pathlib import Path

import pytest
import torch

from moopt.backend import variant_store
from moopt.backend.variant_store import VariantStore


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
    return tmp_path / "variants" / "model"


def made(value: float = 1.0) -> torch.Tensor:
    return torch.full((8, 16), value, dtype=torch.bfloat16)


def never() -> torch.Tensor:
    raise AssertionError("It was made before.")


def test_a_matrix_is_made_once_and_read_from_then_on(folder: Path):
    first = VariantStore("model").fetch("rtn", "layers.0.q", "4", made)
    again = VariantStore("model").fetch("rtn", "layers.0.q", "4", never)
    assert torch.equal(first, made())
    assert torch.equal(again, made())
    assert again.dtype == torch.bfloat16
    assert VariantStore("model").has("rtn", "layers.0.q", "4")


def test_kinds_widths_and_models_are_kept_apart(folder: Path):
    store = VariantStore("model")
    for number, place in enumerate([("rtn", "a", "4"), ("hqq", "a", "4"), ("rtn", "b", "4"), ("rtn", "a", "3")]):
        assert float(store.fetch(*place, lambda n=number: made(n))[0, 0]) == number
    assert float(VariantStore("other").fetch("rtn", "a", "4", lambda: made(9))[0, 0]) == 9


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_made_again_and_said(folder: Path, damage: str, caplog: pytest.LogCaptureFixture):
    VariantStore("model").fetch("rtn", "a", "4", made)
    (file,) = folder.rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-40]), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING, "moopt"):
        assert torch.equal(VariantStore("model").fetch("rtn", "a", "4", made), made())
    assert "is damaged and is made again" in caplog.text
    assert torch.equal(VariantStore("model").fetch("rtn", "a", "4", never), made())


def test_what_a_killed_writer_left_is_removed(folder: Path):
    left = folder / "rtn" / "a" / ".4.safetensors-x1y2"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    VariantStore("model").fetch("rtn", "a", "4", made)
    assert not left.exists()


def test_without_room_on_the_disk_matrices_stay_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(variant_store, "SHARE_OF_DISK", 0.0)
    assert torch.equal(VariantStore("model").fetch("rtn", "a", "4", made), made())
    assert not VariantStore("model").has("rtn", "a", "4")


def fetch(folder: Path) -> None:
    def note() -> torch.Tensor:
        with (folder / "made").open("a") as file:
            file.write("once\n")
        return made()

    assert torch.equal(VariantStore("model").fetch("rtn", "a", "4", note), made())


def test_workers_do_not_make_the_same_matrix_twice(folder: Path):
    folder.mkdir(parents=True)
    processes = [multiprocessing.get_context("fork").Process(target=fetch, args=(folder,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (folder / "made").read_text() == "once\n"
