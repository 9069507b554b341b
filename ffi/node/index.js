// The Tidbit C library for Node, over koffi.
//
// The library is looked for at TIDBIT_LIBRARY (a file), then where the system looks.

import koffi from "koffi";

const names = { win32: "tidbit.dll", darwin: "libtidbit.dylib" };
const library = koffi.load(process.env.TIDBIT_LIBRARY || names[process.platform] || "libtidbit.so");

const functions = Object.fromEntries(
  [
    "const char *tidbit_version(void)",
    "const char *tidbit_last_error(void *out_length)",
    "uint32_t tidbit_abi_version(void)",
    "int32_t tidbit_options_new(_Out_ void **out_options)",
    "int32_t tidbit_options_set_int(void *options, const char *key, size_t key_length, int64_t value)",
    "int32_t tidbit_options_set_float(void *options, const char *key, size_t key_length, double value)",
    "int32_t tidbit_options_set_text(void *options, const char *key, size_t key_length, const char *value, size_t value_length)",
    "int32_t tidbit_options_free(void *options)",
    "int32_t tidbit_model_open(const char *path, size_t path_length, void *options, _Out_ void **out_model)",
    "int32_t tidbit_model_free(void *model)",
    "int32_t tidbit_info(void *handle, const char *key, size_t key_length, void *buffer, size_t capacity, _Out_ size_t *out_length)",
    "int32_t tidbit_encode(void *model, const char *text, size_t text_length, void *tokens, size_t capacity, _Out_ size_t *out_length)",
    "int32_t tidbit_decode(void *model, const void *tokens, size_t n_tokens, void *buffer, size_t capacity, _Out_ size_t *out_length)",
    "int32_t tidbit_session_new(void *model, void *options, _Out_ void **out_session)",
    "int32_t tidbit_session_clone(void *session, _Out_ void **out_session)",
    "int32_t tidbit_session_append(void *session, const void *tokens, size_t n_tokens)",
    "int32_t tidbit_session_append_text(void *session, const char *text, size_t text_length, void *out_n_tokens)",
    "int32_t tidbit_session_next(void *session, void *out_token, void *buffer, size_t capacity, _Out_ size_t *out_length)",
    "int32_t tidbit_session_embed(void *session, const char *text, size_t text_length, void *buffer, size_t capacity, _Out_ size_t *out_length)",
    "int32_t tidbit_session_tokens(void *session, void *tokens, size_t capacity, _Out_ size_t *out_length)",
    "int32_t tidbit_session_rewind(void *session, size_t position)",
    "int32_t tidbit_session_save(void *session, void *buffer, size_t capacity, _Out_ size_t *out_length)",
    "int32_t tidbit_session_load(void *session, const void *data, size_t length)",
    "int32_t tidbit_session_cancel(void *session)",
    "int32_t tidbit_session_free(void *session)",
  ].map((declaration) => [declaration.match(/tidbit_(\w+)\(/)[1], library.func(declaration)]),
);

const OK = 0;
const END = 1;
const BUFFER_TOO_SMALL = 6;

/** A failure of the library. */
export class TidbitError extends Error {
  constructor(status) {
    super(functions.last_error(null));
    this.name = "TidbitError";
    this.status = status;
  }
}

function check(status) {
  if (status !== OK) throw new TidbitError(status);
}

const bytes = (text) => Buffer.byteLength(text);

/** Makes a handle. */
function make(call) {
  const out = [null];
  check(call(out));
  return out[0];
}

/** Calls with a buffer of `type` that is large enough; the status and what was written. */
function fill(type, capacity, call) {
  for (;;) {
    const buffer = new type(capacity);
    const length = [0];
    const status = call(buffer, capacity, length);
    if (status === BUFFER_TOO_SMALL) {
      capacity = Number(length[0]);
    } else if (status === OK || status === END) {
      return [status, buffer.subarray(0, Number(length[0]))];
    } else {
      throw new TidbitError(status);
    }
  }
}

const text = (filled) => new TextDecoder().decode(filled[1]);

/** Runs with options, which are freed afterwards. */
function withOptions(values, run) {
  const options = make((out) => functions.options_new(out));
  try {
    for (const [key, value] of Object.entries(values)) {
      if (typeof value === "string") {
        check(functions.options_set_text(options, key, bytes(key), value, bytes(value)));
      } else if (typeof value === "bigint" || functions.options_set_float(options, key, bytes(key), value) !== OK) {
        check(functions.options_set_int(options, key, bytes(key), value));
      }
    }
    return run(options);
  } finally {
    functions.options_free(options);
  }
}

function info(handle, key) {
  return text(fill(Uint8Array, 256, (...buffer) => functions.info(handle, key, bytes(key), ...buffer)));
}

/** The version of the library. */
export function version() {
  return functions.version();
}

/** An opened model. */
export class Model {
  #handle;

  constructor(path, options = {}) {
    this.#handle = withOptions(options, (o) => make((out) => functions.model_open(path, bytes(path), o, out)));
  }

  info(key) {
    return info(this.#handle, key);
  }

  encode(text) {
    return fill(Uint32Array, bytes(text) + 1, (...buffer) =>
      functions.encode(this.#handle, text, bytes(text), ...buffer),
    )[1];
  }

  decode(tokens) {
    const ids = Uint32Array.from(tokens);
    return text(fill(Uint8Array, 256, (...buffer) => functions.decode(this.#handle, ids, ids.length, ...buffer)));
  }

  session(options = {}) {
    return withOptions(options, (o) => new Session(make((out) => functions.session_new(this.#handle, o, out))));
  }

  free() {
    functions.model_free(this.#handle);
    this.#handle = null;
  }
}

/** One text in progress. */
export class Session {
  #handle;

  constructor(handle) {
    this.#handle = handle;
  }

  append(text) {
    if (typeof text === "string") {
      check(functions.session_append_text(this.#handle, text, bytes(text), null));
    } else {
      const ids = Uint32Array.from(text);
      check(functions.session_append(this.#handle, ids, ids.length));
    }
  }

  next() {
    const filled = fill(Uint8Array, 256, (...buffer) => functions.session_next(this.#handle, null, ...buffer));
    return filled[0] === END ? undefined : text(filled);
  }

  *generate(nTokens = Infinity) {
    for (let i = 0; i < nTokens; i++) {
      const piece = this.next();
      if (piece === undefined) return;
      yield piece;
    }
  }

  tokens() {
    return fill(Uint32Array, 256, (...buffer) => functions.session_tokens(this.#handle, ...buffer))[1];
  }

  embed(text) {
    return fill(Float32Array, 0, (...buffer) => functions.session_embed(this.#handle, text, bytes(text), ...buffer))[1];
  }

  rewind(position) {
    check(functions.session_rewind(this.#handle, position));
  }

  save() {
    return fill(Uint8Array, 0, (...buffer) => functions.session_save(this.#handle, ...buffer))[1];
  }

  load(bytes) {
    check(functions.session_load(this.#handle, bytes, bytes.length));
  }

  clone() {
    return new Session(make((out) => functions.session_clone(this.#handle, out)));
  }

  cancel() {
    functions.session_cancel(this.#handle);
  }

  info(key) {
    return info(this.#handle, key);
  }

  free() {
    functions.session_free(this.#handle);
    this.#handle = null;
  }
}
