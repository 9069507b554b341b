-- Continues a text with a model file, piece by piece: luajit stream.lua MODEL TEXT N_TOKENS
--
-- TIDBIT_LIBRARY names the library's file.

local ffi = require("ffi")
ffi.cdef [[
typedef struct tidbit_options tidbit_options;
typedef struct tidbit_model tidbit_model;
typedef struct tidbit_session tidbit_session;
const char *tidbit_last_error(size_t *out_length);
int32_t tidbit_options_new(tidbit_options **out_options);
int32_t tidbit_options_set_float(tidbit_options *options, const char *key, size_t key_length, double value);
int32_t tidbit_options_free(tidbit_options *options);
int32_t tidbit_model_open(const char *path, size_t path_length, const tidbit_options *options, tidbit_model **out_model);
int32_t tidbit_model_free(tidbit_model *model);
int32_t tidbit_session_new(const tidbit_model *model, const tidbit_options *options, tidbit_session **out_session);
int32_t tidbit_session_append_text(tidbit_session *session, const char *text, size_t text_length, size_t *out_n_tokens);
int32_t tidbit_session_next(tidbit_session *session, uint32_t *out_token, char *buffer, size_t capacity, size_t *out_length);
int32_t tidbit_session_free(tidbit_session *session);
]]
local tidbit = ffi.load(os.getenv("TIDBIT_LIBRARY") or "tidbit")
local OK, END = 0, 1

local function check(status)
  if status ~= OK then error(ffi.string(tidbit.tidbit_last_error(nil)), 0) end
end

-- Makes a handle that the garbage collector frees.
local function make(kind, free, call)
  local out = ffi.new(kind .. " *[1]")
  check(call(out))
  return ffi.gc(out[0], free)
end

local path, text, n_tokens = arg[1], arg[2], tonumber(arg[3])
local options = make("tidbit_options", tidbit.tidbit_options_free, tidbit.tidbit_options_new)
local key = "sampling.temperature"
check(tidbit.tidbit_options_set_float(options, key, #key, 0))
local model = make("tidbit_model", tidbit.tidbit_model_free, function(out)
  return tidbit.tidbit_model_open(path, #path, nil, out)
end)
local session = make("tidbit_session", tidbit.tidbit_session_free, function(out)
  return tidbit.tidbit_session_new(model, options, out)
end)
check(tidbit.tidbit_session_append_text(session, text, #text, nil))

io.write(text)
local piece, length = ffi.new("char[256]"), ffi.new("size_t[1]")
for _ = 1, n_tokens do
  local status = tidbit.tidbit_session_next(session, nil, piece, 256, length)
  if status ~= END then check(status) end
  io.write(ffi.string(piece, length[0]))
  io.flush()
  if status == END then break end
end
io.write("\n")
