"""The C library as ctypes sees it: loaded, with the types of its functions."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path

OK = 0
END = 1
BUFFER_TOO_SMALL = 6
ABI_VERSION = 1

_NAMES = {"win32": "tidbit.dll", "darwin": "libtidbit.dylib"}


def _path() -> str:
    """Where the library is: TIDBIT_LIBRARY, this package, or where the system looks."""
    name = _NAMES.get(sys.platform, "libtidbit.so")
    given = os.environ.get("TIDBIT_LIBRARY")
    if given:
        return given
    bundled = Path(__file__).with_name(name)
    return str(bundled) if bundled.exists() else ctypes.util.find_library("tidbit") or name


lib = ctypes.CDLL(_path())

_size = POINTER(c_size_t)
_handle = POINTER(c_void_p)

# Results other than a status.
for _name, _result in (
    ("version", c_char_p),
    ("last_error", c_char_p),
    ("status_name", c_char_p),
    ("abi_version", c_uint32),
):
    getattr(lib, f"tidbit_{_name}").restype = _result

for _name, _arguments in {
    "last_error": [_size],
    "status_name": [c_int32],
    "info": [c_void_p, c_char_p, c_size_t, c_void_p, c_size_t, _size],
    "info_int": [c_void_p, c_char_p, c_size_t, POINTER(c_int64)],
    "info_key": [c_void_p, c_size_t, c_void_p, c_size_t, _size],
    "options_new": [_handle],
    "options_set_int": [c_void_p, c_char_p, c_size_t, c_int64],
    "options_set_float": [c_void_p, c_char_p, c_size_t, c_double],
    "options_set_text": [c_void_p, c_char_p, c_size_t, c_char_p, c_size_t],
    "options_free": [c_void_p],
    "model_open": [c_char_p, c_size_t, c_void_p, _handle],
    "model_estimate": [c_char_p, c_size_t, c_void_p, POINTER(c_uint64), POINTER(c_uint64)],
    "model_verify": [c_void_p],
    "model_free": [c_void_p],
    "encode": [c_void_p, c_char_p, c_size_t, c_void_p, c_size_t, _size],
    "decode": [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, _size],
    "session_estimate": [c_void_p, c_void_p, POINTER(c_uint64)],
    "session_new": [c_void_p, c_void_p, _handle],
    "session_clone": [c_void_p, _handle],
    "session_append": [c_void_p, c_void_p, c_size_t],
    "session_append_text": [c_void_p, c_char_p, c_size_t, _size],
    "session_next": [c_void_p, POINTER(c_uint32), c_void_p, c_size_t, _size],
    "session_set_sampling": [c_void_p, c_void_p],
    "session_output": [c_void_p, c_int32, c_size_t, c_void_p, c_size_t, _size],
    "session_embed": [c_void_p, c_char_p, c_size_t, c_void_p, c_size_t, _size],
    "session_score": [c_void_p, c_void_p, c_size_t, POINTER(c_float), POINTER(c_double)],
    "session_rewind": [c_void_p, c_size_t],
    "session_tokens": [c_void_p, c_void_p, c_size_t, _size],
    "session_save": [c_void_p, c_void_p, c_size_t, _size],
    "session_load": [c_void_p, POINTER(c_uint8), c_size_t],
    "session_cancel": [c_void_p],
    "session_free": [c_void_p],
}.items():
    _function = getattr(lib, f"tidbit_{_name}")
    _function.argtypes = _arguments
    if _function.restype is ctypes.c_int:
        _function.restype = c_int32

if lib.tidbit_abi_version() != ABI_VERSION:
    raise ImportError(f"the tidbit library has ABI {lib.tidbit_abi_version()}, this package needs {ABI_VERSION}")
