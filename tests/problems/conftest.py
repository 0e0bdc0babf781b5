"""The same tiny models as the backend's tests."""

from tests.backend.conftest import byte_tokenizer, save, tiny

__all__ = ["byte_tokenizer", "save", "tiny"]
