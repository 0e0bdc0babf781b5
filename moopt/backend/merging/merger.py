"""Models of one architecture that become one: a tensor of each at a time, into a model in memory or into files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moopt.backend import models
from moopt.backend.finite import all_finite
from moopt.backend.merging import operators
from moopt.backend.merging.recipe import Per, Recipe, group
from moopt.backend.shards import Shards, of_model, renamed
from moopt.errors import MergeError, ModelNotFound
from moopt.whole import new_folder

Products = dict[str, dict[str, float]]
"""A number by group and member."""
MERGED = {torch.bfloat16, torch.float16, torch.float32, torch.float64}
"""The types that numbers are merged in; those of 8 bits have scales, which merging knows nothing of."""
COPIED = {".json", ".txt", ".model", ".jinja"}
"""The files beside a model's weights that a merge gets, by how their names end."""
OF_TOKENIZER = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens", "spiece", "sentencepiece")
"""How the names of a tokenizer's files begin."""


class Merger:
    """Reads models' tensors from their safetensors when they are needed, mapped, one at a time.

    Args:
        members: The models to merge, by the names that recipes call them: folders, Hugging Face ids in the cache, or
            single `.safetensors` files.
        base: What all were tuned from, for methods that merge differences.

    Attributes:
        names: The tensors, in the order of the first model's files.

    Raises:
        MergeError: there are fewer than two models, or they do not fit each other; names the tensor or the token.
        ModelNotFound: a model's files are not there, or damaged.
    """

    def __init__(self, members: Mapping[str, str], base: str | None = None) -> None:
        if len(members) < 2:
            raise MergeError(f"Got {len(members)} model{'s' * (not members)} to merge; expected two or more.")
        self.members = {name: _opened(place) for name, place in members.items()}
        self.base = None if base is None else _opened(base)
        like = next(iter(self.members.values())) if self.base is None else self.base
        self.names = tuple(like)
        first = next(iter(members)) if base is None else "the base"
        for name, shards in self.members.items():
            _check_tensors(first, like, name, shards)
        places = ({} if base is None else {"the base": base}) | dict(members)
        self._places = list(places.values())
        _check_configurations({n: place for n, place in places.items() if not _is_file(place)})

    def tensor(self, name: str, recipe: Recipe) -> Tensor:
        """One merged tensor.

        Raises:
            MergeError: the recipe lacks a weight for it or names a model that there is not, or its method lacks a
                base; or it is not finite.
            ModelNotFound: a file of it has changed since it was opened, or is gone.
        """
        recipe.check(self.members)
        start = None if self.base is None else self.base[name]
        first = next(iter(self.members.values()))[name]
        if not first.is_floating_point():  # equal in all, as was checked
            return first
        found = operators.merge(
            recipe.method, start, _Lazy(list(self.members.values()), name),
            [recipe.weight(member, name) for member in self.members],
            [recipe.density(member, name) for member in self.members],
            [recipe.draw(member, name) for member in self.members],
            recipe.scale,
        )  # fmt: skip
        if not all_finite(found):
            raise MergeError(self._why_not_finite(name))
        return found

    def _why_not_finite(self, name: str) -> str:
        """Why there are numbers in a merged tensor that are none: in words."""
        every = self.members if self.base is None else {**self.members, "the base": self.base}
        if bad := [member for member, shards in every.items() if not all_finite(shards[name])]:
            return f"{name!r} has numbers in {' and '.join(bad)} that are not finite. Leave out what is broken."
        return f"{name!r} is not finite once it is merged; give smaller weights, or a smaller scale."

    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
        """All merged tensors by name, one at a time."""
        for name in self.names:
            yield name, self.tensor(name, recipe)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that the files do not fill.

        Raises:
            MergeError: it has parameters that they have not, or of other shapes; names one.
        """
        _check_model(model, {renamed(name): self._shape(name) for name in self.names})

    @torch.no_grad()
    def fill(self, model: nn.Module, recipe: Recipe) -> float:
        """Put a merge into a model of the architecture, in place, in the model's own types.

        Returns:
            How far it is from the base: the L1 norm of the difference over that of the base; NaN without a base.

        Raises:
            MergeError: the model has parameters that the files have not, or of other shapes; names one.
        """
        places = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        self.check(model)
        moved = 0.0
        for name, merged in self.tensors(recipe):
            if self.base is not None and merged.is_floating_point():
                moved += _norm(merged, self.base[name])
            if (parameter := renamed(name)) in places:
                places[parameter].copy_(merged)
        return moved / self._total if self._total else float("nan")

    def save(self, path: str | os.PathLike[str], recipe: Recipe) -> Path:
        """Write a merge as a folder in the layout of the base (of the first model, without one), whole or not at all.

        The merge is held in memory until it is written. Configuration and tokenizer are copied from there; of single
        files only the weights are written.

        Raises:
            MergeError: there is something at the path already, or the recipe does not fit.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise MergeError(f"Got the path {path!r}; expected a folder to write.")
        folder, like = Path(path), self._places[0]
        if os.path.exists(folder):
            raise MergeError(f"{folder} exists already; give a path where there is nothing.")
        with new_folder(folder, MergeError) as temporary:
            tensors = {name: merged.contiguous() for name, merged in self.tensors(recipe)}
            save_file(tensors, temporary / "model.safetensors", {"format": "pt"})
            for file in [] if _is_file(like) else sorted(Path(models.location(like)).iterdir()):
                if file.is_file() and file.suffix in COPIED and not _of_weights(file.name):
                    shutil.copyfile(file, temporary / file.name)
        return folder

    @torch.no_grad()
    def products(self, model: nn.Module, per: Per) -> Products:
        """How the loss would change, to first order, if a group of a merge became a member's: by group and member.

        Args:
            model: A merge whose parameters have gradients.
            per: What the groups are.
        """
        now, found = dict(model.named_parameters()), Products()
        for name in self.names:
            parameter = now.get(renamed(name))
            if parameter is None or parameter.grad is None:
                continue
            row = found.setdefault(group(name, per), dict.fromkeys(self.members, 0.0))
            gradient = parameter.grad.double()
            at = float((gradient * parameter.double()).sum())
            for member, shards in self.members.items():
                row[member] += float((gradient * shards[name].to(gradient)).sum()) - at
        return found

    @cached_property
    def _total(self) -> float:
        """The L1 norm of the base; 0 without one."""
        return sum(_norm(tensor) for tensor in (self.base or {}).values() if tensor.is_floating_point())

    def _shape(self, name: str) -> tuple[int, ...]:
        return (self.base or next(iter(self.members.values()))).places[name].shape


class _Lazy(Sequence[Tensor]):
    """A tensor of several models, each read when it is asked for."""

    def __init__(self, models: list[Shards], name: str) -> None:
        self._models, self._name = models, name

    def __len__(self) -> int:
        return len(self._models)

    def __getitem__(self, place: Any) -> Any:
        return self._models[place][self._name]


@contextmanager
def gradients(model: nn.Module) -> Iterator[None]:
    """While open, the model's parameters have gradients."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        model.requires_grad_(True)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(wanted[name])


def _norm(tensor: Tensor, other: Tensor | None = None) -> float:
    """The L1 norm of a tensor, or of its difference from another."""
    parts = operators.pieces(tensor)
    others = [torch.zeros(())] * len(parts) if other is None else operators.pieces(other)
    return sum(float((operators.wide(a) - b).abs().sum()) for a, b in zip(parts, others, strict=True))


def _of_weights(name: str) -> bool:
    """Whether a file belongs to weights that a merge does not have, or says what it was exported from."""
    return name.startswith("model") or name.endswith(".index.json") or name == "moopt.json"


def _is_file(place: str) -> bool:
    return place.endswith(".safetensors")


def _opened(place: str) -> Shards:
    if not _is_file(place):
        return of_model(Path(models.location(place)), str)
    if not Path(place).is_file():
        raise ModelNotFound(f"There is no file {place}; expected safetensors, or the folder of a model.")
    try:
        return Shards([Path(place)])
    except ValueError as error:
        raise ModelNotFound(f"{error}. Copy it again.") from error


def _check_tensors(first: str, like: Shards, name: str, shards: Shards) -> None:
    """Refuse two models whose tensors have not the same names and shapes, or differ where they are no weights."""
    for have, lack, one, other in ((like, shards, first, name), (shards, like, name, first)):
        if only := [tensor for tensor in have if tensor not in lack]:
            raise MergeError(
                f"{one} has a tensor {only[0]!r} and {other} has none ({len(only)} such). Merge models of one "
                "architecture; where one has a head of its own and the other has not, save both alike."
            )
    for tensor, place in like.places.items():
        if (found := shards.places[tensor].shape) != place.shape:
            raise MergeError(
                f"{tensor!r} has the shape {found} in {name} and {place.shape} in {first}. Merge models of one "
                "architecture; where only the vocabulary differs, bring all to one tokenizer first."
            )
        own, its = like[tensor], shards[tensor]
        if own.is_floating_point() and its.is_floating_point():
            if narrow := {own.dtype, its.dtype} - MERGED:
                raise MergeError(
                    f"{tensor!r} is {narrow.pop()}; merge models in bfloat16, float16, float32 or float64."
                )
        elif own.dtype != its.dtype or not torch.equal(own, its):
            raise MergeError(f"{tensor!r} holds whole numbers and differs between {first} and {name}: it has no mean.")


def _check_configurations(places: Mapping[str, str]) -> None:
    """Refuse models of different kinds, or whose tokenizers give a token different numbers."""
    kinds = {name: _kind(place) for name, place in places.items()}
    for name, kind in kinds.items():
        if kind != (first := next(iter(kinds.values()))):
            raise MergeError(f"{name} is a {kind} and {next(iter(kinds))} a {first}. Merge models of one architecture.")
    tokenizers = {name: files for name, place in places.items() if (files := _tokenizer(place))}
    if len(set(tokenizers.values())) < 2:
        return
    known = {name: models.load_tokenizer(places[name]).get_vocab() for name in tokenizers}
    for name, vocabulary in known.items():
        first = next(iter(known))
        differing = sorted(dict.fromkeys(t for t, _ in vocabulary.items() ^ known[first].items()))
        if differing:
            token = differing[0]
            raise MergeError(
                f"The token {token!r} is {vocabulary.get(token)} in {name} and {known[first].get(token)} in {first} "
                f"({len(differing)} such). Merge models of one tokenizer."
            )


def _kind(place: str) -> str:
    config = models.load_config(place)
    return ", ".join(getattr(config, "architectures", None) or [str(config.model_type)])


def _tokenizer(place: str) -> str:
    """What a model's tokenizer files hold, as a hash; empty if it has none, as one of images."""
    folder = Path(models.location(place))
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return ""
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.startswith(OF_TOKENIZER):
            found.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return found.hexdigest()


def _check_model(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a model that files of these shapes do not fill."""
    for name, parameter in model.named_parameters():
        if name not in shapes:
            raise MergeError(
                f"The files have no {name!r}, which the model has. They are of another model, or call its parameters "
                "otherwise than transformers' modules do: save all again with save_pretrained(..., "
                "save_original_format=False)."
            )
        if shapes[name] != tuple(parameter.shape):
            raise MergeError(
                f"{name!r} has the shape {shapes[name]} in the files, {tuple(parameter.shape)} in the model."
            )
