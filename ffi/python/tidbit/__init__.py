"""Run quantized language models on the CPU.

A :class:`Model` is an opened file, a :class:`Session` a text in progress. Both are context managers. Failures are
:class:`TidbitError`. A session belongs to one thread at a time; a model to any number.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Union

from ._library import BUFFER_TOO_SMALL, END, OK, lib

__all__ = ["Model", "Session", "TidbitError", "info", "version"]

Option = Union[int, float, str]
_Call = Callable[[Any, int, Any], int]


class TidbitError(Exception):
    """A failure of the library: its message, and the status code of ``tidbit.h``."""

    def __init__(self, status: int) -> None:
        super().__init__(lib.tidbit_last_error(None).decode())
        self.status = status

    @property
    def name(self) -> str:
        """What the status is called."""
        return str(lib.tidbit_status_name(self.status).decode())


def _check(status: int) -> None:
    if status != OK:
        raise TidbitError(status)


def _make(call: Callable[[Any], int]) -> int:
    """A handle."""
    out = ctypes.c_void_p()
    _check(call(ctypes.byref(out)))
    return int(out.value or 0)


def _fill(kind: Any, capacity: int, call: _Call) -> tuple[int, Any, int]:
    """Calls with an array of ``kind`` that is large enough; the status, the array, and how much of it counts."""
    while True:
        buffer, length = (kind * capacity)(), ctypes.c_size_t()
        status = call(buffer, capacity, ctypes.byref(length))
        if status == BUFFER_TOO_SMALL:
            capacity = length.value
        elif status in (OK, END):
            return status, buffer, length.value
        else:
            raise TidbitError(status)


def _text(call: _Call, capacity: int = 256) -> str:
    _, buffer, length = _fill(ctypes.c_char, capacity, call)
    return bytes(buffer[:length]).decode()


def _tokens(tokens: Sequence[int]) -> tuple[Any, int]:
    return (ctypes.c_uint32 * len(tokens))(*tokens), len(tokens)


def _info(handle: int | None, key: str) -> Any:
    name = key.encode()
    text = _text(lambda *buffer: lib.tidbit_info(handle, name, len(name), *buffer))
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _keys(handle: int | None) -> list[str]:
    keys: list[str] = []
    while True:
        try:
            keys.append(_text(lambda *buffer: lib.tidbit_info_key(handle, len(keys), *buffer)))
        except TidbitError as error:
            if error.name == "unknown key":
                return keys
            raise


class _Options:
    """Options for the time of a call. A name without a dot gets the prefix that has it."""

    def __init__(self, options: dict[str, Option]) -> None:
        self.handle = _make(lib.tidbit_options_new)
        try:
            known = set(_keys(self.handle))
            for name, value in options.items():
                full = [f"{prefix}{name}" for prefix in ("", "sampling.", "session.", "model.", "memory.")]
                self._set(next((key for key in full if key in known), name).encode(), value)
        except BaseException:
            lib.tidbit_options_free(self.handle)
            raise

    def _set(self, key: bytes, value: Option) -> None:
        if isinstance(value, str):
            text = value.encode()
            _check(lib.tidbit_options_set_text(self.handle, key, len(key), text, len(text)))
        elif isinstance(value, float):
            _check(lib.tidbit_options_set_float(self.handle, key, len(key), value))
        # A whole number may be meant for an option that takes fractions.
        elif lib.tidbit_options_set_int(self.handle, key, len(key), value) != OK:
            status = lib.tidbit_options_set_float(self.handle, key, len(key), value)
            if status != OK:
                _check(lib.tidbit_options_set_int(self.handle, key, len(key), value))

    def __enter__(self) -> int:
        return self.handle

    def __exit__(self, *_: object) -> None:
        lib.tidbit_options_free(self.handle)


class _Handle:
    """Something that is freed: at the end of its ``with``, by :meth:`close`, or when nothing refers to it any more."""

    _free: Callable[[int], int]

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def close(self) -> None:
        """Frees it. Doing so twice is once."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            type(self)._free(handle)

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def info(self, key: str) -> Any:
        """A fact by key, such as ``vocab_size`` or ``position``."""
        return _info(self._handle, key)

    def keys(self) -> list[str]:
        """The keys of :meth:`info`."""
        return _keys(self._handle)


class Model(_Handle):
    """An opened model file, for any number of sessions and threads."""

    _free = staticmethod(lib.tidbit_model_free)

    def __init__(self, path: str | os.PathLike[str], **options: Option) -> None:
        """Opens a file. Options: ``access`` (``copy``, ``in-place``), ``verify``, ``limit`` (bytes of memory)."""
        name = os.fsencode(path)
        with _Options(options) as handle:
            super().__init__(_make(lambda out: lib.tidbit_model_open(name, len(name), handle, out)))

    def __enter__(self) -> Model:
        return self

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        data = text.encode()
        _, buffer, length = _fill(
            ctypes.c_uint32, len(data) + 1, lambda *out: lib.tidbit_encode(self._handle, data, len(data), *out)
        )
        return list(buffer[:length])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        ids, n = _tokens(tokens)
        return _text(lambda *buffer: lib.tidbit_decode(self._handle, ids, n, *buffer), 8 * n + 1)

    def verify(self) -> None:
        """Compares all checksums."""
        _check(lib.tidbit_model_verify(self._handle))

    def session(self, **options: Option) -> Session:
        """A new text. Options: ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``repeat_penalty``, ``repeat_last_n``,
        ``seed``, ``context``, ``threads``, ``cache``, ``ignore_eos``, ``limit``."""
        with _Options(options) as handle:
            return Session(_make(lambda out: lib.tidbit_session_new(self._handle, handle, out)))


class Session(_Handle):
    """One text in progress; made by :meth:`Model.session`."""

    _free = staticmethod(lib.tidbit_session_free)

    def __enter__(self) -> Session:
        return self

    def append(self, text: str | Sequence[int]) -> None:
        """Appends a text or tokens and runs them."""
        if isinstance(text, str):
            data = text.encode()
            _check(lib.tidbit_session_append_text(self._handle, data, len(data), None))
        else:
            _check(lib.tidbit_session_append(self._handle, *_tokens(text)))

    def next(self) -> tuple[int, str] | None:
        """The next token and the text that it completes, or ``None`` when the model ended the text."""
        token = ctypes.c_uint32()
        status, buffer, length = _fill(
            ctypes.c_char, 256, lambda *out: lib.tidbit_session_next(self._handle, ctypes.byref(token), *out)
        )
        return None if status == END else (token.value, bytes(buffer[:length]).decode())

    def generate(self, n_tokens: int | None = None) -> Iterator[str]:
        """Pieces of text: of at most so many tokens, until the model ends the text or the context is full."""
        n = 0
        while n_tokens is None or n < n_tokens:
            try:
                step = self.next()
            except TidbitError as error:
                if error.name == "context full":
                    return
                raise
            if step is None:
                return
            n += 1
            yield step[1]

    def set_sampling(self, **options: Option) -> None:
        """Chooses tokens in another way from now on; what is not given is at its default."""
        with _Options(options) as handle:
            _check(lib.tidbit_session_set_sampling(self._handle, handle))

    def _output(self, what: int, n_last: int) -> array.array[float]:
        _, buffer, length = _fill(
            ctypes.c_float, 0, lambda *out: lib.tidbit_session_output(self._handle, what, n_last, *out)
        )
        return array.array("f", bytes(buffer)[: 4 * length])

    def logits(self, n_last: int = 1) -> array.array[float]:
        """Logits after the last tokens, row by row."""
        return self._output(0, n_last)

    def log_probabilities(self, n_last: int = 1) -> array.array[float]:
        """Logarithms of the probabilities of what follows the last tokens, row by row."""
        return self._output(1, n_last)

    def hidden_states(self, n_last: int = 1) -> array.array[float]:
        """Hidden states of the last tokens as the head takes them, row by row."""
        return self._output(2, n_last)

    def embed(self, text: str) -> array.array[float]:
        """The embedding of a text, which has nothing to do with that of the session."""
        data = text.encode()
        _, buffer, length = _fill(
            ctypes.c_float, 0, lambda *out: lib.tidbit_session_embed(self._handle, data, len(data), *out)
        )
        return array.array("f", bytes(buffer)[: 4 * length])

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Logarithm of the probability of each token after the text and those before it; the text stays as it is."""
        ids, n = _tokens(tokens)
        scores, total = (ctypes.c_float * max(n, 1))(), ctypes.c_double()
        _check(lib.tidbit_session_score(self._handle, ids, n, scores, ctypes.byref(total)))
        return list(scores[:n])

    def rewind(self, position: int) -> None:
        """Forgets the tokens from ``position`` on."""
        _check(lib.tidbit_session_rewind(self._handle, position))

    @property
    def tokens(self) -> list[int]:
        """The tokens of the text."""
        _, buffer, length = _fill(ctypes.c_uint32, 256, lambda *out: lib.tidbit_session_tokens(self._handle, *out))
        return list(buffer[:length])

    @property
    def position(self) -> int:
        """How many tokens the text has."""
        return int(self.info("position"))

    def save(self) -> bytes:
        """The session as bytes, for :meth:`load`."""
        _, buffer, length = _fill(ctypes.c_uint8, 0, lambda *out: lib.tidbit_session_save(self._handle, *out))
        return bytes(buffer)[:length]

    def load(self, saved: bytes) -> None:
        """Replaces the text by a saved one, of the same model."""
        data = (ctypes.c_uint8 * len(saved)).from_buffer_copy(saved)
        _check(lib.tidbit_session_load(self._handle, data, len(saved)))

    def clone(self) -> Session:
        """Another session that begins with this text, and shares its memory."""
        return Session(_make(lambda out: lib.tidbit_session_clone(self._handle, out)))

    def cancel(self) -> None:
        """Stops the call that uses the session, or the next one; from any thread."""
        lib.tidbit_session_cancel(self._handle)


def version() -> str:
    """The version of the library."""
    return str(lib.tidbit_version().decode())


def info(key: str) -> Any:
    """A fact about the library, such as ``isa`` or ``options``."""
    return _info(None, key)
