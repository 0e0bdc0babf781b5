"""A GGUF file run by llama.cpp itself, by its C interface: tokens in, logits out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from moopt.backend.gguf.llama_cpp import library
from moopt.errors import BackendError

DEFAULTS = (512, 2048, 512)
"""How a context's settings begin in llama.cpp: tokens of the context, of a batch, of a part of it."""
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
ERROR = 4
"""The level of what llama.cpp complains of."""
_SAID: list[str] = []


def _listen(level: int, text: bytes, _: object) -> None:
    """Keeps what the library complains of."""
    if level >= ERROR:
        _SAID.append(text.decode(errors="replace"))


_LISTENER = LOG(_listen)
"""The library calls it whenever it has something to say: it lasts as long as the library."""


class _Settings(ctypes.Structure):
    """Settings that are handed on as the library made them; their beginning has long been the same."""

    _fields_ = (("first", ctypes.c_uint32 * 3), ("rest", ctypes.c_uint8 * 500))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8)),
    )  # fmt: skip


class Running:
    """A model in llama.cpp. Close it, or use it in a `with` block.

    Args:
        path: The GGUF file.
        context: Tokens of a sequence, at most.
        threads: That it may use; None: as many as llama.cpp takes.

    Raises:
        BackendError: the file cannot be loaded; repeats what llama.cpp said.
        QuantizationError: llama.cpp is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], context: int = 512, threads: int | None = None) -> None:
        self._model = self._state = None
        self._library, self._context = _declared(), context
        _SAID.clear()
        self._model = self._library.llama_model_load_from_file(
            os.fsencode(Path(path)), self._library.llama_model_default_params()
        )
        if not self._model:
            raise BackendError(f"llama.cpp cannot load {path}: {_said()}.")
        settings = self._library.llama_context_default_params()
        if tuple(settings.first) != DEFAULTS:
            raise BackendError(f"llama.cpp's settings begin with {tuple(settings.first)}; expected {DEFAULTS}.")
        settings.first[:] = (context, context, context)
        self._state = self._library.llama_init_from_model(self._model, settings)
        if not self._state:
            raise BackendError(f"llama.cpp cannot begin with {context} tokens: {_said()}.")
        if threads is not None:
            self._library.llama_set_n_threads(self._state, threads, threads)
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self.vocabulary = int(self._library.llama_vocab_n_tokens(self._vocabulary))

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token of a sequence, [tokens, vocabulary]."""
        if not 0 < len(tokens) <= self._context:
            raise BackendError(
                f"Got {len(tokens)} tokens; expected 1 to {self._context}, the context it was begun with."
            )
        self._library.llama_memory_clear(self._library.llama_get_memory(self._state), True)
        batch = self._library.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for place, token in enumerate(tokens):
                batch.token[place], batch.pos[place], batch.n_seq_id[place] = int(token), place, 1
                batch.seq_id[place][0], batch.logits[place] = 0, 1
            if code := self._library.llama_decode(self._state, batch):
                raise BackendError(f"llama.cpp stopped with code {code}: {_said()}.")
            found = self._library.llama_get_logits(self._state)
            return np.ctypeslib.as_array(found, (len(tokens), self.vocabulary)).copy()
        finally:
            self._library.llama_batch_free(batch)

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without any before or after it."""
        given = text.encode()
        room = len(given) + 1
        found = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self._vocabulary, given, len(given), found, room, False, True)
        return list(found[:count])

    def close(self) -> None:
        """Give the memory back."""
        if self._state:
            self._library.llama_free(self._state)
        if self._model:
            self._library.llama_model_free(self._model)
        self._state = self._model = None

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _said() -> str:
    """What llama.cpp complained of."""
    return " ".join("".join(_SAID).split()) or "it does not say why"


def _declared() -> Any:
    """The library, with what its functions take and give."""
    found, pointer = library(), ctypes.c_void_p
    for name, gives, takes in (
        ("llama_log_set", None, (LOG, pointer)),
        ("llama_model_default_params", _Settings, ()),
        ("llama_model_load_from_file", pointer, (ctypes.c_char_p, _Settings)),
        ("llama_model_free", None, (pointer,)),
        ("llama_context_default_params", _Settings, ()),
        ("llama_init_from_model", pointer, (pointer, _Settings)),
        ("llama_free", None, (pointer,)),
        ("llama_set_n_threads", None, (pointer, ctypes.c_int32, ctypes.c_int32)),
        ("llama_model_get_vocab", pointer, (pointer,)),
        ("llama_vocab_n_tokens", ctypes.c_int32, (pointer,)),
        ("llama_get_memory", pointer, (pointer,)),
        ("llama_memory_clear", None, (pointer, ctypes.c_bool)),
        ("llama_batch_init", _Batch, (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
        ("llama_batch_free", None, (_Batch,)),
        ("llama_decode", ctypes.c_int32, (pointer, _Batch)),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), (pointer,)),
        (
            "llama_tokenize", ctypes.c_int32,
            (pointer, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_bool,
             ctypes.c_bool),
        ),
    ):  # fmt: skip
        function = getattr(found, name)
        function.restype, function.argtypes = gives, takes
    found.llama_log_set(_LISTENER, None)
    return found
