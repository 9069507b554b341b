# Continues a text with a model file, piece by piece: ruby stream.rb MODEL TEXT N_TOKENS
#
# Over Fiddle, which comes with Ruby. TIDBIT_LIBRARY names the library's file.

require "fiddle/import"

module Tidbit
  extend Fiddle::Importer
  dlload ENV.fetch("TIDBIT_LIBRARY", "libtidbit.so")
  extern "const char *tidbit_last_error(void *)"
  extern "int tidbit_options_new(void *)"
  extern "int tidbit_options_set_float(void *, const char *, size_t, double)"
  extern "int tidbit_options_free(void *)"
  extern "int tidbit_model_open(const char *, size_t, void *, void *)"
  extern "int tidbit_model_free(void *)"
  extern "int tidbit_session_new(void *, void *, void *)"
  extern "int tidbit_session_append_text(void *, const char *, size_t, void *)"
  extern "int tidbit_session_next(void *, void *, void *, size_t, void *)"
  extern "int tidbit_session_free(void *)"

  OK = 0
  END_OF_TEXT = 1

  def self.check(status)
    raise tidbit_last_error(nil).to_s if status != OK
  end

  # Makes a handle.
  def self.make
    place = Fiddle::Pointer.malloc(Fiddle::SIZEOF_VOIDP, Fiddle::RUBY_FREE)
    check(yield(place))
    place.ptr
  end
end

path, text, n_tokens = ARGV
key = "sampling.temperature"
options = Tidbit.make { |place| Tidbit.tidbit_options_new(place) }
Tidbit.check(Tidbit.tidbit_options_set_float(options, key, key.bytesize, 0.0))
model = Tidbit.make { |place| Tidbit.tidbit_model_open(path, path.bytesize, nil, place) }
session = Tidbit.make { |place| Tidbit.tidbit_session_new(model, options, place) }
Tidbit.check(Tidbit.tidbit_session_append_text(session, text, text.bytesize, nil))

print text
piece = Fiddle::Pointer.malloc(256, Fiddle::RUBY_FREE)
length = Fiddle::Pointer.malloc(Fiddle::SIZEOF_SIZE_T, Fiddle::RUBY_FREE)
n_tokens.to_i.times do
  status = Tidbit.tidbit_session_next(session, nil, piece, 256, length)
  Tidbit.check(status) if status != Tidbit::END_OF_TEXT
  print piece[0, length[0, Fiddle::SIZEOF_SIZE_T].unpack1("J")]
  $stdout.flush
  break if status == Tidbit::END_OF_TEXT
end
puts

Tidbit.tidbit_session_free(session)
Tidbit.tidbit_model_free(model)
Tidbit.tidbit_options_free(options)
