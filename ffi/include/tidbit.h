/*
 * Tidbit: run quantized language models on the CPU.
 *
 * What holds for every function; CONVENTIONS.md says more.
 *
 * - Every function returns a status, unless it says otherwise: TIDBIT_OK, or what went wrong; tidbit_last_error tells it in
 *   words, for the calling thread. The numbers never change.
 * - Results are in `out_` parameters, which are 0 or null after a failure. A length that did not fit is the one exception.
 * - Handles are checked: null, freed or made-up ones, and ones of another kind, are answered by TIDBIT_INVALID_HANDLE.
 *   Handles are freed in any order, on any thread.
 * - Texts are a pointer and a length in bytes, UTF-8. A null pointer of length 0 is an empty text. Nothing that the library
 *   returns must be freed by the host, except handles, by their own functions.
 * - A model may be used by any number of threads at once; a session, a decoder or options by one at a time.
 * - Nothing a caller does through these functions ends the process, as long as its pointers have the lengths it says.
 *
 * Made by cbindgen from the sources; do not edit.
 */

#ifndef TIDBIT_H
#define TIDBIT_H

#include <stddef.h>
#include <stdint.h>

/**
 * The number that `tidbit_abi_version` returns.
 */
#define TIDBIT_ABI_VERSION 1

/**
 * What a record is: something that may matter.
 */
#define TIDBIT_LOG_WARNING 1

/**
 * What a record is: what the library did, and how long it took.
 */
#define TIDBIT_LOG_INFO 2

/**
 * What `tidbit_session_output` gives: logits, `[vocab_size]` for each token.
 */
#define TIDBIT_LOGITS 0

/**
 * What `tidbit_session_output` gives: natural logarithms of probabilities, `[vocab_size]` for each token.
 */
#define TIDBIT_LOG_PROBABILITIES 1

/**
 * What `tidbit_session_output` gives: hidden states after the last block and the final normalization, as the head takes
 * them, `[d_model]` for each token.
 */
#define TIDBIT_HIDDEN_STATES 2

/**
 * Token ids to text, as they come.
 */
typedef struct tidbit_decoder tidbit_decoder;

/**
 * An opened model: immutable, shared by any number of threads and sessions.
 */
typedef struct tidbit_model tidbit_model;

/**
 * Settings by key, for opening models, making sessions and sampling.
 */
typedef struct tidbit_options tidbit_options;

/**
 * One text in progress.
 */
typedef struct tidbit_session tidbit_session;

/**
 * What a call returns. A number keeps its meaning for ever; new ones may be added.
 */
typedef int32_t tidbit_status;

/**
 * A function of the host that takes back the memory that it lent: its address, its length in bytes, and what the host gave
 * with the function.
 *
 * It is called exactly once for each call of `tidbit_model_open_memory`, also when that fails: as soon as nothing uses the
 * memory any more, on whichever thread was the last to use it. It must return normally and must not call the library.
 */
typedef void (*tidbit_release_function)(const uint8_t *data, size_t length, void *user_data);

/**
 * A function of the host that takes one whole record: its level, its text (UTF-8, no line break, no NUL), the length of
 * that, and what the host gave with the function.
 *
 * It runs on the thread of the call that it is about, must return normally (no exception, no `longjmp`), and may call the
 * library, except for the handle that is in use.
 */
typedef void (*tidbit_log_function)(int32_t level, const char *text, size_t text_length, void *user_data);

/**
 * It worked.
 */
#define TIDBIT_OK 0

/**
 * The text has ended: the model chose its end-of-text token. Not a failure.
 */
#define TIDBIT_END 1

/**
 * A null pointer or a number out of range.
 */
#define TIDBIT_INVALID_ARGUMENT 2

/**
 * A handle that is null, freed, or of another kind.
 */
#define TIDBIT_INVALID_HANDLE 3

/**
 * A text that is not UTF-8.
 */
#define TIDBIT_INVALID_UTF8 4

/**
 * There is no such key.
 */
#define TIDBIT_UNKNOWN_KEY 5

/**
 * The result does not fit the buffer; the length it needs is in the `out_` parameter, and nothing was lost.
 */
#define TIDBIT_BUFFER_TOO_SMALL 6

/**
 * Another call is using the handle.
 */
#define TIDBIT_BUSY 7

/**
 * An earlier call on this handle ended in `TIDBIT_INTERNAL`: it can only be freed.
 */
#define TIDBIT_POISONED 8

/**
 * `tidbit_session_cancel` was called.
 */
#define TIDBIT_CANCELLED 9

/**
 * No room for more tokens in the session's context.
 */
#define TIDBIT_CONTEXT_FULL 10

/**
 * Memory or another resource cannot be had, or is more than `memory.limit`.
 */
#define TIDBIT_OUT_OF_MEMORY 11

/**
 * The operating system refused.
 */
#define TIDBIT_IO 12

/**
 * Not a model, or a damaged one.
 */
#define TIDBIT_BAD_MODEL 13

/**
 * Something that this version, this machine or this model cannot do.
 */
#define TIDBIT_UNSUPPORTED 14

/**
 * A saved session that is damaged, or is not one of this model.
 */
#define TIDBIT_BAD_SAVE 15

/**
 * The session has no token to go on from.
 */
#define TIDBIT_EMPTY 16

/**
 * The model computed something that is not a number.
 */
#define TIDBIT_NOT_FINITE 17

/**
 * A defect of this library, caught before it reached the host. A session that it happened in is poisoned.
 */
#define TIDBIT_INTERNAL 18

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of this library, for example `0.1.0`: UTF-8, ending in NUL.
 *
 * Ownership: static; valid as long as the library is loaded.
 * Threads: any.
 * Errors: none; never null.
 */
const char *tidbit_version(void);

/**
 * The version of the binary interface. A program that was built against version N runs with any library that says N, also
 * a newer one with more functions.
 *
 * Threads: any.
 * Errors: none.
 */
uint32_t tidbit_abi_version(void);

/**
 * Tells a fact by key, as text: words and numbers as they are, everything else as JSON.
 *
 * `handle` is a model, a session or options, or null for the library itself. `tidbit_info_key` lists the keys; a key with
 * dots leads into a value (`architecture.attention.n_heads`, `provenance.sources.0.name`).
 *
 * Ownership: handle, key and buffer stay the caller's. A null buffer of capacity 0 asks for the length. A NUL follows the
 * text where there is room.
 * Threads: any; of a session that another call is using, `TIDBIT_BUSY`.
 * Errors: `TIDBIT_UNKNOWN_KEY`; `TIDBIT_OUT_OF_MEMORY`; `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`; `TIDBIT_UNSUPPORTED`
 * of a decoder; `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_UTF8`, `TIDBIT_INVALID_ARGUMENT`.
 */
tidbit_status tidbit_info(const void *handle,
                          const char *key,
                          size_t key_length,
                          char *buffer,
                          size_t capacity,
                          size_t *out_length);

/**
 * Tells a fact that is a whole number.
 *
 * Ownership, threads: as `tidbit_info`.
 * Errors: as `tidbit_info`; `TIDBIT_INVALID_ARGUMENT` for a fact that is no whole number.
 */
tidbit_status tidbit_info_int(const void *handle, const char *key, size_t key_length, int64_t *out_value);

/**
 * Lists the keys of a handle, or of the library: the one with number `index`, counted from 0.
 *
 * Ownership, threads: as `tidbit_info`.
 * Errors: as `tidbit_info`; `TIDBIT_UNKNOWN_KEY` from the end of the list on.
 */
tidbit_status tidbit_info_key(const void *handle, size_t index, char *buffer, size_t capacity, size_t *out_length);

/**
 * What went wrong in the last call of this thread that failed: one line of UTF-8, ending in NUL.
 *
 * `out_length`, unless it is null, gets its length without the NUL. Before the first failure the text is empty; a call
 * that works leaves it as it is.
 *
 * Ownership: the text belongs to the library and stays valid until the next call of any function by this thread, or until
 * the thread ends.
 * Threads: any; each thread sees its own failures only.
 * Errors: none; never null.
 */
const char *tidbit_last_error(size_t *out_length);

/**
 * The name of a status, for example `context full`: UTF-8, ending in NUL. `unknown status` for a number that this
 * version does not know.
 *
 * Ownership: static; valid as long as the library is loaded.
 * Threads: any.
 * Errors: none; never null.
 */
const char *tidbit_status_name(tidbit_status status);

/**
 * Opens a model file.
 *
 * By default the file is read into memory: whatever is done to it afterwards (truncated, rewritten, removed) does not
 * matter. With the option `model.access` set to `in-place` it is mapped instead: opened at once, with its pages shared
 * between processes, and the process ends (SIGBUS) if someone truncates it meanwhile. The path is the system's: UTF-8, or
 * on Unix any bytes without NUL. Directories, pipes and devices are refused without waiting for them.
 *
 * Ownership: the caller frees the handle with `tidbit_model_free`; the path stays the caller's. `options` may be null.
 * Threads: any.
 * Errors: `TIDBIT_IO`; `TIDBIT_BAD_MODEL` for what is not a model, or a damaged one; `TIDBIT_UNSUPPORTED` for another
 * version of the format; `TIDBIT_OUT_OF_MEMORY`, also for `memory.limit`; `TIDBIT_INVALID_ARGUMENT`, `TIDBIT_INVALID_HANDLE`.
 */
tidbit_status tidbit_model_open(const char *path,
                                size_t path_length,
                                const tidbit_options *options,
                                tidbit_model **out_model);

/**
 * Opens a model that is a part of an open file: `length` bytes from `offset` on, or all that follow when `length` is 0.
 *
 * The file must be a regular one. Its position is neither used nor moved. With `model.access` at `in-place`, `offset` must
 * be a multiple of 64. Everything else is as in `tidbit_model_open`.
 *
 * Ownership: the descriptor stays the caller's, who may close it when the call returns.
 * Threads: any.
 * Errors: as `tidbit_model_open`; `TIDBIT_IO` for a descriptor that is not open; `TIDBIT_UNSUPPORTED` on systems without
 * Unix descriptors.
 */
tidbit_status tidbit_model_open_fd(int32_t fd,
                                   uint64_t offset,
                                   uint64_t length,
                                   const tidbit_options *options,
                                   tidbit_model **out_model);

/**
 * Opens a model that lies in the caller's memory.
 *
 * The memory is used in place where its address is a multiple of 64, and otherwise copied. With the option `model.access`
 * it is always copied (`copy`), or refused when it is not aligned (`in-place`).
 *
 * Ownership: the memory is lent. It must stay valid and unchanged until `release` is called, which happens exactly once for
 * every call of this function, whatever it returns (see `tidbit_release_function`). A null `release` is not called: the
 * memory must then outlive the model and everything made of it.
 * Threads: any; `release` may run on any thread that uses the model or a session of it.
 * Errors: as `tidbit_model_open`, without `TIDBIT_IO`.
 */
tidbit_status tidbit_model_open_memory(const uint8_t *data,
                                       size_t length,
                                       tidbit_release_function release,
                                       void *user_data,
                                       const tidbit_options *options,
                                       tidbit_model **out_model);

/**
 * Says how many bytes of memory opening a model file takes, and making a session of it, before anything is taken: only the
 * header of the file is read.
 *
 * Where the file is used in place, its own bytes are not counted. For a session of an opened model, see
 * `tidbit_session_estimate`.
 *
 * Ownership: path and options stay the caller's; `options` may be null. Neither place for a result may be.
 * Threads: any.
 * Errors: as `tidbit_model_open`.
 */
tidbit_status tidbit_model_estimate(const char *path,
                                    size_t path_length,
                                    const tidbit_options *options,
                                    uint64_t *out_model_bytes,
                                    uint64_t *out_session_bytes);

/**
 * Makes another handle of the same model, for an owner of its own. Nothing is copied.
 *
 * Ownership: each handle is freed by itself, in any order; the model goes with the last handle and the last session.
 * Threads: any.
 * Errors: `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`, `TIDBIT_OUT_OF_MEMORY`.
 */
tidbit_status tidbit_model_share(const tidbit_model *model, tidbit_model **out_model);

/**
 * Reads the whole model and compares its checksums. They find damage, not forgery.
 *
 * Threads: any.
 * Errors: `TIDBIT_BAD_MODEL` for the first part that is not what was written; `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_INVALID_HANDLE`.
 */
tidbit_status tidbit_model_verify(const tidbit_model *model);

/**
 * Frees a handle of a model. Null is nothing to free. Sessions and decoders of the model stay as they are.
 *
 * Threads: any.
 * Errors: `TIDBIT_INVALID_HANDLE`, also when it is freed twice.
 */
tidbit_status tidbit_model_free(tidbit_model *model);

/**
 * Makes options, all at their defaults.
 *
 * The keys: `tidbit_info_key` of the options lists them, `tidbit_info` of them tells their values, and `tidbit_info` of
 * null with the key `options` describes them all.
 *
 * Ownership: the caller frees the handle with `tidbit_options_free`. Models and sessions copy what they need.
 * Threads: any. The handle belongs to one thread at a time; another gets `TIDBIT_BUSY`.
 * Errors: `TIDBIT_INVALID_ARGUMENT`, `TIDBIT_OUT_OF_MEMORY`.
 */
tidbit_status tidbit_options_new(tidbit_options **out_options);

/**
 * Sets an option that is a whole number; yes and no are 1 and 0.
 *
 * Ownership: the key stays the caller's.
 * Threads: as `tidbit_options_new`.
 * Errors: `TIDBIT_INVALID_HANDLE`, `TIDBIT_BUSY`, `TIDBIT_UNKNOWN_KEY`; `TIDBIT_INVALID_ARGUMENT` for a key of another type
 * or a value out of range: nothing has changed then.
 */
tidbit_status tidbit_options_set_int(tidbit_options *options,
                                     const char *key,
                                     size_t key_length,
                                     int64_t value);

/**
 * Sets an option that is a number with a fraction.
 *
 * Ownership, threads, errors: as `tidbit_options_set_int`.
 */
tidbit_status tidbit_options_set_float(tidbit_options *options, const char *key, size_t key_length, double value);

/**
 * Sets an option that is a word.
 *
 * Ownership: key and value stay the caller's.
 * Threads, errors: as `tidbit_options_set_int`; and `TIDBIT_INVALID_UTF8`.
 */
tidbit_status tidbit_options_set_text(tidbit_options *options,
                                      const char *key,
                                      size_t key_length,
                                      const char *value,
                                      size_t value_length);

/**
 * Says where the log of models and sessions made with these options goes: to `function`, for records of the levels up to
 * `level` (`TIDBIT_LOG_WARNING`, `TIDBIT_LOG_INFO`); with a null function nowhere, as at first.
 *
 * Ownership: `user_data` stays the caller's. It must be valid, and usable on every thread that calls the library, for as long
 * as a model or session made with these options.
 * Threads: as `tidbit_options_new`; see `tidbit_log_function` for the thread it is called on.
 * Errors: `TIDBIT_INVALID_HANDLE`, `TIDBIT_BUSY`; `TIDBIT_INVALID_ARGUMENT` for a level that there is not.
 */
tidbit_status tidbit_options_set_log(tidbit_options *options,
                                     int32_t level,
                                     tidbit_log_function function,
                                     void *user_data);

/**
 * Frees options. Null is nothing to free.
 *
 * Threads: any.
 * Errors: `TIDBIT_INVALID_HANDLE`, also when they are freed twice.
 */
tidbit_status tidbit_options_free(tidbit_options *options);

/**
 * Saves a session to bytes: its text, what the model made of it, and where the random numbers are. Options are not saved.
 *
 * Ownership: the buffer stays the caller's. A null buffer of capacity 0 asks for the length. The bytes are the same on every
 * machine.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`; `TIDBIT_UNSUPPORTED` for a model with an encoder;
 * `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
 */
tidbit_status tidbit_session_save(const tidbit_session *session,
                                  uint8_t *buffer,
                                  size_t capacity,
                                  size_t *out_length);

/**
 * Restores a session: its text is replaced by the saved one, and goes on as that would have, if the options that choose
 * tokens are the same.
 *
 * The bytes may come from anywhere: they are checked, and must be of the same model and type of cache. The context may be
 * another, if the text fits.
 *
 * Ownership: the bytes stay the caller's.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_BAD_SAVE`; `TIDBIT_UNSUPPORTED` for a model with an encoder; `TIDBIT_CONTEXT_FULL`; `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_BUSY`, `TIDBIT_POISONED`,
 * `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`. The session is then as it was.
 */
tidbit_status tidbit_session_load(tidbit_session *session,
                                  const uint8_t *data,
                                  size_t length);

/**
 * Saves a session to a file, as `tidbit_session_save` does to bytes. The file appears under its name when it is complete; a
 * file of that name is replaced, anything else is not.
 *
 * Ownership: the path stays the caller's.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_IO`, `TIDBIT_UNSUPPORTED` for a model with an encoder, `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
 */
tidbit_status tidbit_session_save_file(const tidbit_session *session,
                                       const char *path,
                                       size_t path_length);

/**
 * Restores a session from a file, as `tidbit_session_load` does from bytes.
 *
 * Ownership: the path stays the caller's.
 * Threads: as `tidbit_session_new`.
 * Errors: as `tidbit_session_load`, and `TIDBIT_IO`.
 */
tidbit_status tidbit_session_load_file(tidbit_session *session, const char *path, size_t path_length);

/**
 * Says how many bytes of memory a session takes, before anything is taken: its cache when full, and its scratch memory.
 * Threads and their stacks are not counted.
 *
 * Ownership: handles stay the caller's; `options` may be null.
 * Threads: any.
 * Errors: `TIDBIT_INVALID_ARGUMENT` for a context that the model does not have; `TIDBIT_INVALID_HANDLE`, `TIDBIT_BUSY`.
 */
tidbit_status tidbit_session_estimate(const tidbit_model *model, const tidbit_options *options, uint64_t *out_bytes);

/**
 * Makes a session: an empty text, with all memory that it will need.
 *
 * Ownership: the caller frees the handle with `tidbit_session_free`. It keeps the model; options are copied and may be null.
 * Threads: any. The handle belongs to one thread at a time; another gets `TIDBIT_BUSY`. The session has worker threads of its
 * own, which only compute.
 * Errors: `TIDBIT_OUT_OF_MEMORY`, also for `memory.limit`; `TIDBIT_INVALID_ARGUMENT` for options that the model does not
 * take; `TIDBIT_UNSUPPORTED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_BUSY`.
 */
tidbit_status tidbit_session_new(const tidbit_model *model,
                                 const tidbit_options *options,
                                 tidbit_session **out_session);

/**
 * Makes another session with the text of this one, the options, and the state of the random numbers. What both have in
 * common is shared, not copied; each goes its own way from there.
 *
 * Ownership: the caller frees the new handle. Either may be freed first.
 * Threads: as `tidbit_session_new`.
 * Errors: as `tidbit_session_new`; `TIDBIT_POISONED`.
 */
tidbit_status tidbit_session_clone(const tidbit_session *session, tidbit_session **out_session);

/**
 * Appends tokens to the text and runs them through the model (prefill). No tokens are nothing to do.
 *
 * A character that earlier tokens left incomplete is given up.
 *
 * A model with an encoder (T5) writes about another text: what is appended to an empty text is read by the encoder, at once,
 * and the text begins with the one token that the model starts with (`architecture.encoder.start_id` of `tidbit_info`). An empty
 * text can be begun again. For the time of the call the encoder takes a cache of the size of its text.
 *
 * Ownership: tokens stay the caller's.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_CONTEXT_FULL`; `TIDBIT_CANCELLED`; `TIDBIT_INVALID_ARGUMENT` for a token that the model does not have;
 * `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`. The text is then as it was.
 */
tidbit_status tidbit_session_append(tidbit_session *session,
                                    const uint32_t *tokens,
                                    size_t n_tokens);

/**
 * Appends a text: its tokens, as `tidbit_encode` tells them, are run through the model. At the beginning of a session come
 * first the tokens that the tokenizer puts before every text (LLaMA's `<s>`), unless the text begins with them; what an encoder
 * reads has all that belong around a text (T5's `</s>`). `out_n_tokens` gets the number of all.
 *
 * Ownership: the text stays the caller's. `out_n_tokens` may be null.
 * Threads: as `tidbit_session_new`.
 * Errors: as `tidbit_session_append` and `tidbit_encode`. The text of the session is then as it was.
 */
tidbit_status tidbit_session_append_text(tidbit_session *session,
                                         const char *text,
                                         size_t text_length,
                                         size_t *out_n_tokens);

/**
 * Chooses the next token, appends it to the text, and tells the text that it completes: whole characters, sometimes none.
 *
 * `TIDBIT_OK`: there is a token. `TIDBIT_END`: the model ended the text; the token that says so is in `out_token` but is not
 * appended, and the buffer has what was left of an incomplete character. For a model without a tokenizer the text is
 * always empty.
 *
 * Ownership: the buffer stays the caller's. A NUL follows the text where there is room. `out_token` may be null.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`: nothing was lost, the next call chooses the same token;
 * `TIDBIT_EMPTY` before anything was appended; `TIDBIT_CONTEXT_FULL`; `TIDBIT_CANCELLED`; `TIDBIT_NOT_FINITE` for a model
 * that computes no numbers; `TIDBIT_BAD_MODEL` for a damaged tokenizer; `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_BUSY`,
 * `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`. The text is then as it was.
 */
tidbit_status tidbit_session_next(tidbit_session *session,
                                  uint32_t *out_token,
                                  char *buffer,
                                  size_t capacity,
                                  size_t *out_length);

/**
 * Sets how tokens are chosen from now on: what `sampling.*` and `session.ignore_eos` of the options say. The random numbers
 * start anew.
 *
 * Ownership: options are copied; null stands for the defaults.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`.
 */
tidbit_status tidbit_session_set_sampling(tidbit_session *session,
                                          const tidbit_options *options);

/**
 * Tells what the model computed at the last `n_last` tokens of the text, row by row, the last token's row last. `what` is
 * `TIDBIT_LOGITS`, `TIDBIT_LOG_PROBABILITIES` or `TIDBIT_HIDDEN_STATES`.
 *
 * What comes after the last token is there, or takes no more than `tidbit_session_next` does; for more tokens they are run
 * once more, together. Neither the text nor the random numbers change.
 *
 * Ownership: the buffer stays the caller's; capacity and length count floats. A null buffer of capacity 0 asks for the
 * length.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`; `TIDBIT_INVALID_ARGUMENT` for another `what`, for
 * `n_last` of 0, or more than the tokens there are, or than the session gives at once (`max_batch` of `tidbit_info`, at most 128);
 * `TIDBIT_EMPTY`, `TIDBIT_NOT_FINITE` (log-probabilities only), `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_CANCELLED`, `TIDBIT_BUSY`,
 * `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`.
 */
tidbit_status tidbit_session_output(tidbit_session *session,
                                    int32_t what,
                                    size_t n_last,
                                    float *buffer,
                                    size_t capacity,
                                    size_t *out_length);

/**
 * Embeds a text: a vector `[d_model]`, made of the hidden states of its tokens and of those that the tokenizer puts around them
 * (BERT's `[CLS]` and `[SEP]`), pooled and normalized as the model says (`architecture.pooling` of `tidbit_info`). The text of
 * the session has no part in it and stays as it is.
 *
 * It is what encoders are for, which have no logits: `tidbit_session_append` and what follows from it are
 * `TIDBIT_UNSUPPORTED` there. A decoder embeds too. For the time of the call it takes a cache of the size of the text.
 *
 * Ownership: text and buffer stay the caller's; capacity and length count floats. A null buffer of capacity 0 asks for the
 * length.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`; `TIDBIT_CONTEXT_FULL` for a text of more tokens than the
 * model embeds; `TIDBIT_EMPTY` for one without any; `TIDBIT_NOT_FINITE`, `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_CANCELLED`,
 * `TIDBIT_POISONED`; otherwise as `tidbit_encode`, and `TIDBIT_BUSY`.
 */
tidbit_status tidbit_session_embed(tidbit_session *session,
                                   const char *text,
                                   size_t text_length,
                                   float *buffer,
                                   size_t capacity,
                                   size_t *out_length);

/**
 * Scores tokens as what follows the text, which stays as it is: the natural logarithm of the probability of each after all
 * before it. `out_total` gets their sum. The first token of an empty text follows nothing; its score is 0 and does not count.
 *
 * Ownership: tokens and buffer stay the caller's. `scores` has room for `n_tokens` values, or is null.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_CONTEXT_FULL` when all but the last do not fit behind the text; `TIDBIT_EMPTY` when the model has an encoder that has
 * read nothing yet; otherwise as `tidbit_session_append`, and `TIDBIT_NOT_FINITE`.
 */
tidbit_status tidbit_session_score(tidbit_session *session,
                                   const uint32_t *tokens,
                                   size_t n_tokens,
                                   float *scores,
                                   double *out_total);

/**
 * Takes tokens back: those from `position` (a number of tokens) on are forgotten. Position 0 is an empty text. The random
 * numbers go on.
 *
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_INVALID_ARGUMENT` for a position behind the end; `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`.
 */
tidbit_status tidbit_session_rewind(tidbit_session *session,
                                    size_t position);

/**
 * Tells the tokens of the text.
 *
 * Ownership: the buffer stays the caller's. A null buffer of capacity 0 asks for their number.
 * Threads: as `tidbit_session_new`.
 * Errors: `TIDBIT_BUFFER_TOO_SMALL`, with their number in `out_length`; `TIDBIT_BUSY`, `TIDBIT_POISONED`,
 * `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
 */
tidbit_status tidbit_session_tokens(const tidbit_session *session,
                                    uint32_t *tokens,
                                    size_t capacity,
                                    size_t *out_length);

/**
 * Stops the call that is using the session, before its next layer, or else the next call that computes: that call returns
 * `TIDBIT_CANCELLED`, once, and the text is as it was before it.
 *
 * Threads: any, at any time, also in a signal handler: it stores one atomic and neither waits, locks nor allocates.
 * Errors: `TIDBIT_INVALID_HANDLE`. This function leaves no message.
 */
tidbit_status tidbit_session_cancel(const tidbit_session *session);

/**
 * Frees a session. Null is nothing to free. A call that is using it on another thread is cancelled, and frees it when it
 * returns.
 *
 * Threads: any.
 * Errors: `TIDBIT_INVALID_HANDLE`, also when it is freed twice.
 */
tidbit_status tidbit_session_free(tidbit_session *session);

/**
 * Tells the token ids of a text. No special token is added; those that are written in the text are recognised.
 *
 * Ownership: text and buffer stay the caller's. A null buffer of capacity 0 asks for the number of tokens.
 * Threads: any.
 * Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the number of tokens in `out_length`; `TIDBIT_INVALID_UTF8`;
 * `TIDBIT_UNSUPPORTED` for a model without a tokenizer; `TIDBIT_BAD_MODEL` for a damaged one; `TIDBIT_OUT_OF_MEMORY`,
 * `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
 */
tidbit_status tidbit_encode(const tidbit_model *model,
                            const char *text,
                            size_t text_length,
                            uint32_t *tokens,
                            size_t capacity,
                            size_t *out_length);

/**
 * Tells the text of token ids, special tokens included. Bytes that are no UTF-8 become U+FFFD; an id that no token has is
 * no text.
 *
 * Ownership: tokens and buffer stay the caller's. A null buffer of capacity 0 asks for the length in bytes. A NUL, not
 * counted in the length, follows the text where there is room.
 * Threads: any.
 * Errors: as `tidbit_encode`.
 */
tidbit_status tidbit_decode(const tidbit_model *model,
                            const uint32_t *tokens,
                            size_t n_tokens,
                            char *buffer,
                            size_t capacity,
                            size_t *out_length);

/**
 * Makes a decoder, which turns token ids into text as they come: a character whose bytes are spread over tokens is held
 * back until it is whole.
 *
 * Ownership: the caller frees the handle with `tidbit_decoder_free`. It keeps the model.
 * Threads: any. The handle belongs to one thread at a time; another gets `TIDBIT_BUSY`.
 * Errors: `TIDBIT_UNSUPPORTED` for a model without a tokenizer; `TIDBIT_BAD_MODEL`, `TIDBIT_OUT_OF_MEMORY`, `TIDBIT_INVALID_HANDLE`,
 * `TIDBIT_INVALID_ARGUMENT`.
 */
tidbit_status tidbit_decoder_new(const tidbit_model *model,
                                 tidbit_decoder **out_decoder);

/**
 * Tells the text that further tokens complete: whole characters, often none.
 *
 * Ownership: tokens and buffer stay the caller's. A NUL follows the text where there is room.
 * Threads: as `tidbit_decoder_new`.
 * Errors: `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`: the tokens were not taken, give them again;
 * `TIDBIT_BUSY`, `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_ARGUMENT`.
 */
tidbit_status tidbit_decoder_push(tidbit_decoder *decoder,
                                  const uint32_t *tokens,
                                  size_t n_tokens,
                                  char *buffer,
                                  size_t capacity,
                                  size_t *out_length);

/**
 * Tells what is left at the end of a text: U+FFFD when a character was never completed, otherwise nothing. The decoder is
 * then ready for another text.
 *
 * Ownership, threads, errors: as `tidbit_decoder_push`.
 */
tidbit_status tidbit_decoder_finish(tidbit_decoder *decoder,
                                    char *buffer,
                                    size_t capacity,
                                    size_t *out_length);

/**
 * Frees a decoder. Null is nothing to free.
 *
 * Threads: any.
 * Errors: `TIDBIT_INVALID_HANDLE`, also when it is freed twice.
 */
tidbit_status tidbit_decoder_free(tidbit_decoder *decoder);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TIDBIT_H */
