<?php
// Continues a text with a model file, piece by piece: php stream.php MODEL TEXT N_TOKENS
//
// TIDBIT_LIBRARY names the library's file.

$tidbit = FFI::cdef(<<<'C'
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
C, getenv('TIDBIT_LIBRARY') ?: 'libtidbit.so');

const OK = 0;
const END = 1;

$check = function (int $status) use ($tidbit): void {
    if ($status !== OK) {
        $message = $tidbit->tidbit_last_error(null);
        throw new RuntimeException(is_string($message) ? $message : FFI::string($message));
    }
};

// Makes a handle.
$make = function (string $kind, callable $call) use ($tidbit, $check): FFI\CData {
    $out = $tidbit->new("$kind *");
    $check($call(FFI::addr($out)));
    return $out;
};

[, $path, $text, $nTokens] = $argv;
$key = 'sampling.temperature';
$options = $make('tidbit_options', fn ($out) => $tidbit->tidbit_options_new($out));
$check($tidbit->tidbit_options_set_float($options, $key, strlen($key), 0.0));
$model = $make('tidbit_model', fn ($out) => $tidbit->tidbit_model_open($path, strlen($path), null, $out));
$session = $make('tidbit_session', fn ($out) => $tidbit->tidbit_session_new($model, $options, $out));
$check($tidbit->tidbit_session_append_text($session, $text, strlen($text), null));

echo $text;
$piece = $tidbit->new('char[256]');
$length = $tidbit->new('size_t');
for ($i = 0; $i < (int) $nTokens; $i++) {
    $status = $tidbit->tidbit_session_next($session, null, $piece, 256, FFI::addr($length));
    if ($status !== END) {
        $check($status);
    }
    echo FFI::string($piece, $length->cdata);
    if ($status === END) {
        break;
    }
}
echo "\n";

$tidbit->tidbit_session_free($session);
$tidbit->tidbit_model_free($model);
$tidbit->tidbit_options_free($options);
