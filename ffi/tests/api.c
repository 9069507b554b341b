/* Every function of the header and every misuse we could think of: api MODEL FOLDER
 *
 * MODEL is a small model file with a tokenizer; FOLDER is for files of this run. Each check that fails ends the program with
 * its line. Run under sanitizers by ffi/tests/sanitize.sh.
 */

#define _XOPEN_SOURCE 700

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "tidbit.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, tidbit_last_error(NULL)); \
            abort(); \
        } \
    } while (0)

/* A call that works. */
#define OK(call) CHECK((call) == TIDBIT_OK)

/* A call that fails with a status, and says why. */
#define FAILS(expected, call) \
    do { \
        tidbit_status found = (call); \
        if (found != (expected)) { \
            fprintf(stderr, "%s:%d: %s: %s, expected %s (last error: %s)\n", __FILE__, __LINE__, #call, \
                    tidbit_status_name(found), tidbit_status_name(expected), tidbit_last_error(NULL)); \
            abort(); \
        } \
        size_t length; \
        const char *message = tidbit_last_error(&length); \
        CHECK(length > 0 && length == strlen(message) && strchr(message, '\n') == NULL); \
    } while (0)

#define TEXT(literal) literal, strlen(literal)

static const char *model_path;
static const char *folder;

static char *in_folder(const char *name) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static tidbit_options *new_options(void) {
    tidbit_options *options;
    OK(tidbit_options_new(&options));
    return options;
}

/* Options for sessions whose text is always the same: one thread, the best token. */
static tidbit_options *greedy(void) {
    tidbit_options *options = new_options();
    OK(tidbit_options_set_float(options, TEXT("sampling.temperature"), 0.0));
    OK(tidbit_options_set_int(options, TEXT("session.threads"), 1));
    return options;
}

static tidbit_model *open_model(const tidbit_options *options) {
    tidbit_model *model;
    OK(tidbit_model_open(model_path, strlen(model_path), options, &model));
    CHECK(model != NULL);
    return model;
}

static tidbit_session *new_session(const tidbit_model *model, const tidbit_options *options) {
    tidbit_session *session;
    OK(tidbit_session_new(model, options, &session));
    CHECK(session != NULL);
    return session;
}

static int64_t info_int(const void *handle, const char *key) {
    int64_t value;
    OK(tidbit_info_int(handle, key, strlen(key), &value));
    return value;
}

/* Adds the text of the next `n` tokens. */
static void generate(tidbit_session *session, int n, char *text) {
    for (int i = 0; i < n; i++) {
        char piece[64];
        size_t length;
        uint32_t token;
        tidbit_status status = tidbit_session_next(session, &token, piece, sizeof piece, &length);
        CHECK(status == TIDBIT_OK || status == TIDBIT_END);
        CHECK(length < sizeof piece && strlen(piece) == length);
        strcat(text, piece);
        if (status == TIDBIT_END) {
            return;
        }
    }
}

static unsigned char *read_file(const char *path, size_t *length, void **memory) {
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    fseek(file, 0, SEEK_END);
    *length = (size_t)ftell(file);
    rewind(file);
    CHECK(posix_memalign(memory, 64, *length + 64) == 0);
    CHECK(fread(*memory, 1, *length, file) == *length);
    fclose(file);
    return *memory;
}

static void write_file(const char *path, const void *data, size_t length) {
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(data, 1, length, file) == length);
    CHECK(fclose(file) == 0);
}

static void versions(void) {
    CHECK(tidbit_abi_version() == TIDBIT_ABI_VERSION);
    char text[64];
    size_t length;
    OK(tidbit_info(NULL, TEXT("version"), text, sizeof text, &length));
    CHECK(strcmp(text, tidbit_version()) == 0);
    CHECK(info_int(NULL, "abi_version") == TIDBIT_ABI_VERSION && info_int(NULL, "cores") >= 1);
    CHECK(strcmp(tidbit_status_name(TIDBIT_OK), "ok") == 0);
    CHECK(strcmp(tidbit_status_name(TIDBIT_BUSY), "busy") == 0);
    CHECK(strcmp(tidbit_status_name(-1), "unknown status") == 0);
    CHECK(strcmp(tidbit_status_name(INT32_MAX), "unknown status") == 0);
    CHECK(tidbit_last_error(NULL) != NULL);
}

static void info(void) {
    tidbit_model *model = open_model(NULL);
    tidbit_session *session = new_session(model, NULL);
    tidbit_options *options = new_options();
    const void *handles[] = {NULL, model, session, options};
    for (int h = 0; h < 4; h++) {
        size_t n = 0, length;
        char key[128], small[2];
        tidbit_status status;
        while ((status = tidbit_info_key(handles[h], n, key, sizeof key, &length)) == TIDBIT_OK) {
            /* Whatever is listed can be asked for. */
            FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_info_key(handles[h], n, NULL, 0, &length));
            CHECK(length == strlen(key));
            status = tidbit_info(handles[h], key, strlen(key), NULL, 0, &length);
            CHECK(status == TIDBIT_BUFFER_TOO_SMALL && length > 0);
            char *value = malloc(length + 1);
            size_t again;
            OK(tidbit_info(handles[h], key, strlen(key), value, length, &again));
            CHECK(again == length);
            OK(tidbit_info(handles[h], key, strlen(key), value, length + 1, &again));
            CHECK(strlen(value) == length);
            free(value);
            n++;
        }
        CHECK(status == TIDBIT_UNKNOWN_KEY && n >= 8);
        FAILS(TIDBIT_UNKNOWN_KEY, tidbit_info_key(handles[h], SIZE_MAX, key, sizeof key, &length));
        FAILS(TIDBIT_UNKNOWN_KEY, tidbit_info(handles[h], TEXT("nothing"), key, sizeof key, &length));
        CHECK(length == 0);
        FAILS(TIDBIT_UNKNOWN_KEY, tidbit_info(handles[h], NULL, 0, small, sizeof small, &length));
        FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_info(handles[h], NULL, 3, small, sizeof small, &length));
        FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_info(handles[h], TEXT("isa"), small, sizeof small, NULL));
        FAILS(TIDBIT_INVALID_UTF8, tidbit_info(handles[h], TEXT("\xFF\xFE"), small, sizeof small, &length));
        int64_t value = 7;
        FAILS(TIDBIT_UNKNOWN_KEY, tidbit_info_int(handles[h], TEXT("nothing"), &value));
        CHECK(value == 0);
        FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_info_int(handles[h], TEXT("isa"), NULL));
    }
    int64_t value;
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_info_int(model, TEXT("family"), &value));
    CHECK(info_int(model, "architecture.attention.n_heads") > 0);
    CHECK(info_int(model, "vocab_size") == info_int(model, "architecture.vocab_size"));
    CHECK(info_int(session, "context") == info_int(model, "context_length"));
    CHECK(info_int(session, "position") == 0);
    char text[256];
    size_t length;
    OK(tidbit_info(model, TEXT("provenance.converter"), text, sizeof text, &length));
    CHECK(strncmp(text, "tidbit", 6) == 0);
    OK(tidbit_info(model, TEXT("access"), text, sizeof text, &length));
    CHECK(strcmp(text, "copy") == 0);
    tidbit_decoder *decoder;
    OK(tidbit_decoder_new(model, &decoder));
    FAILS(TIDBIT_UNSUPPORTED, tidbit_info(decoder, TEXT("a"), text, sizeof text, &length));
    OK(tidbit_decoder_free(decoder));
    OK(tidbit_options_free(options));
    OK(tidbit_session_free(session));
    OK(tidbit_model_free(model));
}

static void options(void) {
    tidbit_options *o = new_options();
    OK(tidbit_options_set_int(o, TEXT("session.context"), 100));
    CHECK(info_int(o, "session.context") == 100);
    OK(tidbit_options_set_int(o, TEXT("sampling.seed"), -1));
    CHECK(info_int(o, "sampling.seed") == -1);
    OK(tidbit_options_set_float(o, TEXT("sampling.top_p"), 0.5));
    OK(tidbit_options_set_text(o, TEXT("model.access"), TEXT("copy")));
    OK(tidbit_options_set_text(o, TEXT("session.cache"), TEXT("f16")));
    char text[64];
    size_t length;
    OK(tidbit_info(o, TEXT("model.access"), text, sizeof text, &length));
    CHECK(strcmp(text, "copy") == 0);
    FAILS(TIDBIT_UNKNOWN_KEY, tidbit_options_set_int(o, TEXT("session.contexts"), 100));
    FAILS(TIDBIT_UNKNOWN_KEY, tidbit_options_set_int(o, NULL, 0, 100));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_int(o, NULL, 1, 100));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_int(o, "x", SIZE_MAX, 100));
    FAILS(TIDBIT_INVALID_UTF8, tidbit_options_set_int(o, TEXT("\xC3"), 100));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_int(o, TEXT("session.context"), -1));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_int(o, TEXT("session.context"), INT64_MAX));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_int(o, TEXT("sampling.top_p"), 1));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_float(o, TEXT("session.context"), 1.0));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_float(o, TEXT("sampling.top_p"), 0.0));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_float(o, TEXT("sampling.temperature"), -1.0));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_float(o, TEXT("sampling.temperature"), 0.0 / 0.0));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_text(o, TEXT("model.access"), TEXT("mapped")));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_text(o, TEXT("model.access"), NULL, 2));
    FAILS(TIDBIT_INVALID_UTF8, tidbit_options_set_text(o, TEXT("model.access"), TEXT("\xE2\x82")));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_set_log(o, 3, NULL, NULL));
    OK(tidbit_options_set_log(o, TIDBIT_LOG_INFO, NULL, NULL));
    CHECK(info_int(o, "session.context") == 100);
    /* Every option that is described can be set to its default, except that types differ. */
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_options_new(NULL));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_options_set_int(NULL, TEXT("session.context"), 1));
    OK(tidbit_options_free(o));
    OK(tidbit_options_free(NULL));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_options_free(o));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_options_set_int(o, TEXT("session.context"), 1));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_options_set_float(o, TEXT("session.context"), 1));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_options_set_text(o, TEXT("session.context"), TEXT("1")));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_options_set_log(o, 1, NULL, NULL));
}

static void release(const uint8_t *data, size_t length, void *user_data) {
    (void)data;
    (void)length;
    ++*(int *)user_data;
}

static tidbit_status open_status(const char *path, const tidbit_options *options) {
    tidbit_model *model = (tidbit_model *)&model;
    tidbit_status status = tidbit_model_open(path, strlen(path), options, &model);
    CHECK(model == NULL);
    return status;
}

static void opening(void) {
    tidbit_model *model, *shared;
    tidbit_options *in_place = new_options();
    OK(tidbit_options_set_text(in_place, TEXT("model.access"), TEXT("in-place")));
    tidbit_options *verify = new_options();
    OK(tidbit_options_set_int(verify, TEXT("model.verify"), 1));
    model = open_model(in_place);
    OK(tidbit_model_verify(model));
    OK(tidbit_model_share(model, &shared));
    OK(tidbit_model_free(model));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_model_verify(model));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_model_free(model));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_model_share(model, &model));
    CHECK(model == NULL);
    OK(tidbit_model_verify(shared));
    OK(tidbit_model_free(shared));
    OK(tidbit_model_free(NULL));
    OK(tidbit_model_free(open_model(verify)));

    /* What is no model file. */
    FAILS(TIDBIT_IO, open_status(in_folder("missing"), NULL));
    FAILS(TIDBIT_BAD_MODEL, open_status(folder, NULL));
    FAILS(TIDBIT_BAD_MODEL, open_status("/dev/zero", NULL));
    FAILS(TIDBIT_BAD_MODEL, open_status("/dev/null", in_place));
    CHECK(mkfifo(in_folder("pipe"), 0600) == 0);
    FAILS(TIDBIT_BAD_MODEL, open_status(in_folder("pipe"), NULL));
    write_file(in_folder("empty"), "", 0);
    FAILS(TIDBIT_BAD_MODEL, open_status(in_folder("empty"), NULL));
    FAILS(TIDBIT_BAD_MODEL, open_status(in_folder("empty"), in_place));
    write_file(in_folder("text"), "hello, world", 12);
    FAILS(TIDBIT_BAD_MODEL, open_status(in_folder("text"), NULL));
    FAILS(TIDBIT_INVALID_ARGUMENT, open_status("", NULL));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open("a\0b", 3, NULL, &model));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open(NULL, 3, NULL, &model));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open(model_path, strlen(model_path), NULL, NULL));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_model_open(model_path, strlen(model_path), (void *)8, &model));

    /* A path that is no UTF-8 is a path. */
    size_t length;
    void *memory;
    unsigned char *bytes = read_file(model_path, &length, &memory);
    write_file(in_folder("caf\xE9"), bytes, length);
    OK(tidbit_model_open(in_folder("caf\xE9"), strlen(in_folder("caf\xE9")), NULL, &model));
    OK(tidbit_model_free(model));
    FAILS(TIDBIT_IO, open_status(in_folder("\xFF"), NULL));

    /* Truncated at every kind of place. */
    size_t cuts[] = {1, 7, 8, 9, 1000, length / 2, length - 1};
    for (int i = 0; i < 7; i++) {
        write_file(in_folder("cut"), bytes, cuts[i]);
        FAILS(TIDBIT_BAD_MODEL, open_status(in_folder("cut"), NULL));
        FAILS(TIDBIT_BAD_MODEL, open_status(in_folder("cut"), in_place));
    }
    /* A flipped bit in a weight: only the checksums see it. */
    bytes[length - 1000] ^= 1;
    write_file(in_folder("flipped"), bytes, length);
    FAILS(TIDBIT_BAD_MODEL, open_status(in_folder("flipped"), verify));
    OK(tidbit_model_open(in_folder("flipped"), strlen(in_folder("flipped")), NULL, &model));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_verify(model));
    OK(tidbit_model_free(model));
    bytes[length - 1000] ^= 1;

    /* Descriptors: a part of a file, the position stays, the host closes its own. */
    char *both = malloc(length + 4096);
    memset(both, 7, 4096);
    memcpy(both + 4096, bytes, length);
    write_file(in_folder("part"), both, length + 4096);
    write_file(in_folder("odd"), both + 4095, length + 1);
    free(both);
    int fd = open(in_folder("part"), O_RDONLY);
    CHECK(lseek(fd, 5, SEEK_SET) == 5);
    for (int i = 0; i < 2; i++) {
        OK(tidbit_model_open_fd(fd, 4096, i == 0 ? 0 : length, i == 0 ? NULL : in_place, &model));
        CHECK(lseek(fd, 0, SEEK_CUR) == 5);
        OK(tidbit_model_verify(model));
        OK(tidbit_model_free(model));
    }
    OK(tidbit_model_open_fd(fd, 4096, 0, in_place, &model));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(fd, 0, 0, NULL, &shared));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(fd, 4096, length + 1, NULL, &shared));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(fd, UINT64_MAX, 2, NULL, &shared));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(fd, UINT64_MAX, 0, NULL, &shared));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(fd, 4096, UINT64_MAX, NULL, &shared));
    CHECK(shared == NULL);
    CHECK(close(fd) == 0);
    OK(tidbit_model_verify(model));
    OK(tidbit_model_free(model));
    FAILS(TIDBIT_IO, tidbit_model_open_fd(fd, 4096, 0, NULL, &model));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open_fd(-1, 0, 0, NULL, &model));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open_fd(INT32_MIN, 0, 0, NULL, &model));
    FAILS(TIDBIT_IO, tidbit_model_open_fd(INT32_MAX, 0, 0, NULL, &model));
    fd = open(in_folder("odd"), O_RDONLY);
    OK(tidbit_model_open_fd(fd, 1, 0, NULL, &model));
    OK(tidbit_model_free(model));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(fd, 1, 0, in_place, &model));
    CHECK(close(fd) == 0);
    int ends[2];
    CHECK(pipe(ends) == 0);
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(ends[0], 0, 0, NULL, &model));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(ends[1], 0, 0, in_place, &model));
    close(ends[0]);
    close(ends[1]);
    const char *no_files[] = {"/dev/zero", "/dev/null", folder};
    for (int i = 0; i < 3; i++) {
        CHECK((fd = open(no_files[i], O_RDONLY)) >= 0);
        FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(fd, 0, 0, NULL, &model));
        FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_fd(fd, 0, 0, in_place, &model));
        close(fd);
    }
    fd = open(model_path, O_WRONLY);
    if (fd >= 0) {
        FAILS(TIDBIT_IO, tidbit_model_open_fd(fd, 0, 0, NULL, &model));
        FAILS(TIDBIT_IO, tidbit_model_open_fd(fd, 0, 0, in_place, &model));
        close(fd);
    }

    /* The host's memory, given back exactly once. */
    int released = 0;
    OK(tidbit_model_open_memory(bytes, length, release, &released, in_place, &model));
    CHECK(released == 0);
    tidbit_session *session = new_session(model, NULL);
    OK(tidbit_model_free(model));
    OK(tidbit_session_append_text(session, TEXT("Once"), NULL));
    CHECK(released == 0);
    OK(tidbit_session_free(session));
    CHECK(released == 1);
    OK(tidbit_model_open_memory(bytes, length, release, &released, NULL, &model));
    CHECK(released == 1);
    OK(tidbit_model_free(model));
    CHECK(released == 2);
    tidbit_options *copy = new_options();
    OK(tidbit_options_set_text(copy, TEXT("model.access"), TEXT("copy")));
    OK(tidbit_model_open_memory(bytes, length, release, &released, copy, &model));
    CHECK(released == 3);
    OK(tidbit_model_verify(model));
    OK(tidbit_model_free(model));
    memmove(bytes + 1, bytes, length);
    OK(tidbit_model_open_memory(bytes + 1, length, release, &released, NULL, &model));
    CHECK(released == 4);
    OK(tidbit_model_free(model));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open_memory(bytes + 1, length, release, &released, in_place, &model));
    memmove(bytes, bytes + 1, length);
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_memory(bytes, length - 1, release, &released, NULL, &model));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_memory(bytes, 3, release, &released, in_place, &model));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_memory(bytes, 0, release, &released, NULL, &model));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_open_memory(NULL, 0, release, &released, NULL, &model));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open_memory(NULL, 5, release, &released, NULL, &model));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open_memory(bytes, SIZE_MAX, release, &released, NULL, &model));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_open_memory(bytes, length, release, &released, NULL, NULL));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_model_open_memory(bytes, length, release, &released, (void *)1, &model));
    CHECK(model == NULL && released == 13);
    OK(tidbit_model_open_memory(bytes, length, NULL, NULL, NULL, &model));
    OK(tidbit_model_free(model));

    /* Truncated, replaced and removed while a session runs on it: the copy does not care. */
    write_file(in_folder("live"), bytes, length);
    OK(tidbit_model_open(in_folder("live"), strlen(in_folder("live")), NULL, &model));
    session = new_session(model, NULL);
    CHECK(truncate(in_folder("live"), 100) == 0);
    OK(tidbit_session_append_text(session, TEXT("Once upon a time"), NULL));
    write_file(in_folder("live"), "other", 5);
    char text[1000] = "";
    generate(session, 3, text);
    CHECK(unlink(in_folder("live")) == 0);
    OK(tidbit_model_verify(model));
    OK(tidbit_session_free(session));
    OK(tidbit_model_free(model));

    /* How much it will take, and a limit. */
    uint64_t model_bytes, session_bytes, in_place_bytes, again;
    OK(tidbit_model_estimate(model_path, strlen(model_path), NULL, &model_bytes, &session_bytes));
    OK(tidbit_model_estimate(model_path, strlen(model_path), in_place, &in_place_bytes, &again));
    CHECK(model_bytes >= length && in_place_bytes < length / 10 && session_bytes == again);
    model = open_model(NULL);
    OK(tidbit_session_estimate(model, NULL, &again));
    CHECK(again == session_bytes);
    session = new_session(model, NULL);
    int64_t taken = info_int(session, "cache_bytes") + info_int(session, "scratch_bytes");
    CHECK((uint64_t)taken <= session_bytes && session_bytes < (uint64_t)taken * 11 / 10);
    OK(tidbit_session_free(session));
    tidbit_options *limited = new_options();
    OK(tidbit_options_set_int(limited, TEXT("memory.limit"), (int64_t)session_bytes));
    session = new_session(model, limited);
    OK(tidbit_session_free(session));
    OK(tidbit_options_set_int(limited, TEXT("memory.limit"), (int64_t)session_bytes - 1));
    FAILS(TIDBIT_OUT_OF_MEMORY, tidbit_session_new(model, limited, &session));
    CHECK(session == NULL);
    OK(tidbit_options_set_int(limited, TEXT("memory.limit"), 1000));
    FAILS(TIDBIT_OUT_OF_MEMORY, open_status(model_path, limited));
    FAILS(TIDBIT_OUT_OF_MEMORY, tidbit_model_open_memory(bytes, length, NULL, NULL, limited, &shared));
    FAILS(TIDBIT_BAD_MODEL, tidbit_model_estimate(folder, strlen(folder), NULL, &model_bytes, &session_bytes));
    CHECK(model_bytes == 0 && session_bytes == 0);
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_estimate(model_path, strlen(model_path), NULL, NULL, &session_bytes));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_model_estimate(model_path, strlen(model_path), NULL, &model_bytes, NULL));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_estimate(model, NULL, NULL));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_estimate(NULL, NULL, &again));
    OK(tidbit_options_set_int(limited, TEXT("session.context"), 1 << 20));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_estimate(model, limited, &again));
    OK(tidbit_model_free(model));
    OK(tidbit_options_free(limited));
    OK(tidbit_options_free(copy));
    OK(tidbit_options_free(verify));
    OK(tidbit_options_free(in_place));
    free(memory);
}

static void tokenizing(void) {
    tidbit_model *model = open_model(NULL);
    const char *text = "Once upon a time, \xF0\x9F\x98\x80 caf\xC3\xA9";
    uint32_t tokens[100];
    size_t n, length;
    char back[200], piece[200];
    OK(tidbit_encode(model, text, strlen(text), tokens, 100, &n));
    CHECK(n > 5);
    OK(tidbit_decode(model, tokens, n, back, sizeof back, &length));
    CHECK(length == strlen(text) && strcmp(back, text) == 0);
    FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_encode(model, text, strlen(text), NULL, 0, &length));
    CHECK(length == n);
    FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_encode(model, text, strlen(text), tokens, n - 1, &length));
    OK(tidbit_encode(model, text, strlen(text), tokens, n, &length));
    FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_decode(model, tokens, n, back, 3, &length));
    CHECK(length == strlen(text));
    OK(tidbit_encode(model, NULL, 0, NULL, 0, &length));
    CHECK(length == 0);
    OK(tidbit_decode(model, NULL, 0, NULL, 0, &length));
    CHECK(length == 0);
    FAILS(TIDBIT_INVALID_UTF8, tidbit_encode(model, TEXT("a\xFF"), tokens, 100, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_encode(model, NULL, 1, tokens, 100, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_encode(model, "a", SIZE_MAX, tokens, 100, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_encode(model, "a", 1, NULL, 100, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_encode(model, "a", 1, tokens, 100, NULL));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_encode(model, "a", 1, (uint32_t *)(back + 1), 1, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_decode(model, tokens, SIZE_MAX / 4 + 1, back, sizeof back, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_decode(model, NULL, 2, back, sizeof back, &length));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_encode(NULL, "a", 1, tokens, 100, &length));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_decode(NULL, tokens, 1, back, sizeof back, &length));
    uint32_t unknown[] = {UINT32_MAX, 1u << 31};
    OK(tidbit_decode(model, unknown, 2, back, sizeof back, &length));
    CHECK(length == 0);

    /* As a stream: the same text, whatever the pieces; what does not fit was not taken. */
    tidbit_decoder *decoder;
    OK(tidbit_decoder_new(model, &decoder));
    for (int round = 0; round < 2; round++) {
        back[0] = 0;
        for (size_t i = 0; i < n; i++) {
            tidbit_status status = tidbit_decoder_push(decoder, tokens + i, 1, piece, 0, &length);
            if (status == TIDBIT_BUFFER_TOO_SMALL) {
                OK(tidbit_decoder_push(decoder, tokens + i, 1, piece, length + 1, &length));
                strcat(back, piece);
            } else {
                CHECK(status == TIDBIT_OK && length == 0);
            }
        }
        OK(tidbit_decoder_finish(decoder, piece, sizeof piece, &length));
        CHECK(length == 0 && strcmp(back, text) == 0);
    }
    /* The first byte of an emoji, and then the end. */
    OK(tidbit_encode(model, "\xF0\x9F\x98\x80", 4, tokens, 100, &n));
    if (n > 1) {
        OK(tidbit_decoder_push(decoder, tokens, 1, piece, sizeof piece, &length));
        CHECK(length == 0);
        FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_decoder_finish(decoder, NULL, 0, &length));
        CHECK(length == 3);
        OK(tidbit_decoder_finish(decoder, piece, sizeof piece, &length));
        CHECK(strcmp(piece, "\xEF\xBF\xBD") == 0);
    }
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_decoder_push(decoder, NULL, 1, piece, sizeof piece, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_decoder_finish(decoder, NULL, 1, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_decoder_new(model, NULL));
    OK(tidbit_model_free(model));
    OK(tidbit_decoder_push(decoder, tokens, n, piece, sizeof piece, &length));
    OK(tidbit_decoder_free(decoder));
    OK(tidbit_decoder_free(NULL));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_decoder_free(decoder));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_decoder_push(decoder, tokens, n, piece, sizeof piece, &length));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_decoder_finish(decoder, piece, sizeof piece, &length));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_decoder_new(model, &decoder));
}

static void sessions(void) {
    tidbit_options *o = greedy();
    tidbit_model *model = open_model(o);
    tidbit_session *session = new_session(model, o);
    char text[4000] = "", other[4000] = "", piece[64];
    uint32_t token, tokens[600];
    size_t length, n;

    FAILS(TIDBIT_EMPTY, tidbit_session_next(session, &token, piece, sizeof piece, &length));
    CHECK(token == 0 && length == 0);
    OK(tidbit_session_append(session, NULL, 0));
    OK(tidbit_session_append_text(session, TEXT("Once upon a time"), &n));
    CHECK(n > 0 && info_int(session, "position") == (int64_t)n);
    generate(session, 20, text);
    CHECK(strlen(text) > 20);
    OK(tidbit_session_tokens(session, tokens, 600, &length));
    CHECK(length == n + 20);
    FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_session_tokens(session, tokens, 2, &length));
    CHECK(length == n + 20);

    /* Rewound, it writes the same once more; also when a piece first does not fit. */
    OK(tidbit_session_rewind(session, n));
    for (int i = 0; i < 20; i++) {
        uint32_t again;
        tidbit_status status = tidbit_session_next(session, &token, piece, 0, &length);
        CHECK(status == TIDBIT_BUFFER_TOO_SMALL && token == 0 && length > 0);
        OK(tidbit_session_next(session, &again, piece, length + 1, &length));
        CHECK(again == tokens[n + i]);
        strcat(other, piece);
    }
    CHECK(strcmp(text, other) == 0);
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_rewind(session, n + 21));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_rewind(session, SIZE_MAX));
    OK(tidbit_session_rewind(session, 0));
    FAILS(TIDBIT_EMPTY, tidbit_session_next(session, &token, piece, sizeof piece, &length));

    /* The same tokens, one by one. */
    for (size_t i = 0; i < n; i++) {
        OK(tidbit_session_append(session, tokens + i, 1));
    }
    other[0] = 0;
    generate(session, 20, other);
    CHECK(strcmp(text, other) == 0);

    /* A clone goes on alike, and outlives what it was cloned from. */
    OK(tidbit_session_rewind(session, n + 3));
    tidbit_session *clone;
    OK(tidbit_session_clone(session, &clone));
    OK(tidbit_session_append_text(session, TEXT(" and then something else"), NULL));
    OK(tidbit_session_free(session));
    OK(tidbit_session_tokens(clone, tokens + 300, 300, &length));
    CHECK(length == n + 3 && memcmp(tokens, tokens + 300, length * 4) == 0);
    size_t three;
    OK(tidbit_decode(model, tokens + n, 3, other, sizeof other, &three));
    generate(clone, 17, other);
    CHECK(strcmp(text, other) == 0);
    session = clone;

    /* Random, but with a seed: the same again, and another with another seed. */
    tidbit_options *random = greedy();
    OK(tidbit_options_set_float(random, TEXT("sampling.temperature"), 1.5));
    OK(tidbit_options_set_int(random, TEXT("sampling.seed"), 7));
    for (int i = 0; i < 2; i++) {
        char *to = i == 0 ? text : other;
        to[0] = 0;
        OK(tidbit_session_set_sampling(session, random));
        OK(tidbit_session_rewind(session, n));
        generate(session, 20, to);
    }
    CHECK(strcmp(text, other) == 0);
    other[0] = 0;
    OK(tidbit_session_rewind(session, n));
    generate(session, 20, other);
    CHECK(strcmp(text, other) != 0);

    /* Saved and restored in the middle, it writes what it would have. */
    OK(tidbit_session_set_sampling(session, random));
    OK(tidbit_session_rewind(session, n));
    text[0] = 0;
    generate(session, 5, text);
    FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_session_save(session, NULL, 0, &length));
    uint8_t *saved = malloc(length);
    OK(tidbit_session_save(session, saved, length, &length));
    OK(tidbit_session_save_file(session, in_folder("saved"), strlen(in_folder("saved"))));
    OK(tidbit_session_save_file(session, in_folder("saved"), strlen(in_folder("saved"))));
    strcpy(other, text);
    generate(session, 15, text);
    for (int i = 0; i < 3; i++) {
        tidbit_session *to = i == 2 ? session : new_session(model, random);
        if (i == 1) {
            OK(tidbit_session_load_file(to, in_folder("saved"), strlen(in_folder("saved"))));
        } else {
            OK(tidbit_session_load(to, saved, length));
        }
        char rest[4000];
        strcpy(rest, other);
        generate(to, 15, rest);
        CHECK(strcmp(text, rest) == 0);
        if (i < 2) {
            OK(tidbit_session_free(to));
        }
    }
    /* Every damage is found, and leaves the session as it was. */
    OK(tidbit_session_tokens(session, tokens, 600, &n));
    for (size_t cut = 0; cut < length; cut += 1 + length / 50) {
        FAILS(TIDBIT_BAD_SAVE, tidbit_session_load(session, saved, cut));
        saved[cut] ^= 0x10;
        tidbit_status status = tidbit_session_load(session, saved, length);
        CHECK(status == TIDBIT_BAD_SAVE || status == TIDBIT_CONTEXT_FULL);
        saved[cut] ^= 0x10;
    }
    FAILS(TIDBIT_BAD_SAVE, tidbit_session_load(session, NULL, 0));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_load(session, NULL, 5));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_load(session, saved, SIZE_MAX));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_save(session, saved, length, NULL));
    FAILS(TIDBIT_BAD_SAVE, tidbit_session_load_file(session, model_path, strlen(model_path)));
    FAILS(TIDBIT_BAD_SAVE, tidbit_session_load_file(session, folder, strlen(folder)));
    FAILS(TIDBIT_BAD_SAVE, tidbit_session_load_file(session, TEXT("/dev/zero")));
    FAILS(TIDBIT_BAD_SAVE, tidbit_session_load_file(session, in_folder("pipe"), strlen(in_folder("pipe"))));
    FAILS(TIDBIT_BAD_SAVE, tidbit_session_load_file(session, in_folder("empty"), strlen(in_folder("empty"))));
    FAILS(TIDBIT_IO, tidbit_session_load_file(session, in_folder("missing"), strlen(in_folder("missing"))));
    FAILS(TIDBIT_IO, tidbit_session_save_file(session, folder, strlen(folder)));
    FAILS(TIDBIT_IO, tidbit_session_save_file(session, TEXT("/dev/null")));
    FAILS(TIDBIT_IO, tidbit_session_save_file(session, in_folder("no/such"), strlen(in_folder("no/such"))));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_save_file(session, NULL, 0));
    CHECK(info_int(session, "position") == (int64_t)n);
    free(saved);

    /* Whatever the cache keeps. */
    const char *types[] = {"f32", "f16", "q8", "q4", "auto"};
    for (int i = 0; i < 5; i++) {
        tidbit_options *typed = greedy();
        OK(tidbit_options_set_text(typed, TEXT("session.cache"), types[i], strlen(types[i])));
        tidbit_session *from = new_session(model, typed), *to = new_session(model, typed);
        /* More than a page of 64 positions. */
        OK(tidbit_session_append_text(from, TEXT("Once upon a time there was a king, and the king had three sons."), NULL));
        text[0] = other[0] = 0;
        generate(from, 60, text);
        FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_session_save(from, NULL, 0, &length));
        uint8_t *bytes = malloc(2 * length);
        OK(tidbit_session_save(from, bytes, length, &length));
        OK(tidbit_session_load(to, bytes, length));
        size_t again;
        OK(tidbit_session_save(to, bytes + length, length, &again));
        CHECK(again == length && memcmp(bytes, bytes + length, length) == 0);
        text[0] = 0;
        generate(from, 20, text);
        generate(to, 20, other);
        CHECK(strlen(text) > 0 && strcmp(text, other) == 0);
        free(bytes);
        OK(tidbit_session_free(from));
        OK(tidbit_session_free(to));
        OK(tidbit_options_free(typed));
    }

    /* Outputs. */
    size_t vocab = (size_t)info_int(model, "vocab_size"), d_model = (size_t)info_int(model, "d_model");
    float *logits = malloc(4 * vocab * sizeof *logits), *again = malloc(4 * vocab * sizeof *again);
    OK(tidbit_session_output(session, TIDBIT_LOGITS, 4, logits, 4 * vocab, &length));
    CHECK(length == 4 * vocab);
    OK(tidbit_session_output(session, TIDBIT_LOGITS, 1, again, vocab, &length));
    CHECK(length == vocab && memcmp(again, logits + 3 * vocab, vocab * sizeof *again) == 0);
    OK(tidbit_session_output(session, TIDBIT_LOG_PROBABILITIES, 1, again, vocab, &length));
    double sum = 0;
    for (size_t i = 0; i < vocab; i++) {
        double e = again[i], p = 1, term = 1;
        CHECK(e <= 0);
        /* exp without libm: enough terms of e/1024, squared ten times. */
        e /= 1024;
        for (int k = 1; k < 12; k++) {
            term *= e / k;
            p += term;
        }
        for (int k = 0; k < 10; k++) {
            p *= p;
        }
        sum += p;
    }
    CHECK(sum > 0.9999 && sum < 1.0001);
    OK(tidbit_session_output(session, TIDBIT_HIDDEN_STATES, 2, again, 2 * d_model, &length));
    CHECK(length == 2 * d_model);
    FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_session_output(session, TIDBIT_LOGITS, 2, NULL, 0, &length));
    CHECK(length == 2 * vocab);
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_output(session, 3, 1, again, vocab, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_output(session, -1, 1, again, vocab, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_output(session, TIDBIT_LOGITS, 0, again, vocab, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_output(session, TIDBIT_LOGITS, SIZE_MAX, again, vocab, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_output(session, TIDBIT_LOGITS, 1, NULL, vocab, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_output(session, TIDBIT_LOGITS, 1, again, vocab, NULL));

    /* An embedding is of another text. */
    OK(tidbit_session_tokens(session, tokens, 600, &n));
    FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_session_embed(session, TEXT("the king"), NULL, 0, &length));
    CHECK(length == d_model);
    OK(tidbit_session_embed(session, TEXT("the king"), again, length, &length));
    CHECK(length == d_model && info_int(session, "position") == (int64_t)n);
    FAILS(TIDBIT_EMPTY, tidbit_session_embed(session, NULL, 0, again, vocab, &length));
    CHECK(length == 0);
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_embed(session, NULL, 3, again, vocab, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_embed(session, TEXT("a"), NULL, vocab, &length));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_embed(session, TEXT("a"), again, vocab, NULL));
    FAILS(TIDBIT_INVALID_UTF8, tidbit_session_embed(session, TEXT("\xFF"), again, vocab, &length));

    /* Scores: the same as the log-probabilities, and nothing changes. */
    OK(tidbit_session_tokens(session, tokens, 600, &n));
    uint32_t next[3] = {5, 6, 7};
    float scores[3];
    double total;
    OK(tidbit_session_output(session, TIDBIT_LOG_PROBABILITIES, 1, again, vocab, &length));
    OK(tidbit_session_score(session, next, 3, scores, &total));
    CHECK(scores[0] == again[5] && scores[1] < 0 && scores[2] < 0);
    CHECK(total == (double)scores[0] + (double)scores[1] + (double)scores[2]);
    CHECK(info_int(session, "position") == (int64_t)n);
    OK(tidbit_session_append(session, next, 2));
    OK(tidbit_session_output(session, TIDBIT_LOG_PROBABILITIES, 1, again, vocab, &length));
    CHECK(scores[2] == again[7]);
    OK(tidbit_session_rewind(session, n));
    OK(tidbit_session_score(session, NULL, 0, NULL, &total));
    CHECK(total == 0);
    OK(tidbit_session_score(session, next, 3, NULL, &total));
    tidbit_session *fresh = new_session(model, o);
    OK(tidbit_session_score(fresh, next, 3, scores, &total));
    CHECK(scores[0] == 0 && scores[1] < 0);
    OK(tidbit_session_score(fresh, next, 1, scores, &total));
    CHECK(total == 0);
    FAILS(TIDBIT_EMPTY, tidbit_session_output(fresh, TIDBIT_LOGITS, 1, again, vocab, &length));
    next[2] = UINT32_MAX;
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_score(fresh, next, 3, scores, &total));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_score(fresh, next, 3, scores, NULL));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_score(fresh, NULL, 3, scores, &total));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_append(fresh, next, 3));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_append(fresh, NULL, 3));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_append(fresh, next, SIZE_MAX));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_append(fresh, (uint32_t *)((char *)next + 1), 1));
    FAILS(TIDBIT_INVALID_UTF8, tidbit_session_append_text(fresh, TEXT("\x80"), &n));
    CHECK(n == 0 && info_int(fresh, "position") == 0);
    OK(tidbit_session_free(fresh));

    /* The context: full is a status, and what fits still does. */
    OK(tidbit_options_set_int(o, TEXT("session.context"), 8));
    fresh = new_session(model, o);
    uint32_t many[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    FAILS(TIDBIT_CONTEXT_FULL, tidbit_session_append(fresh, many, 9));
    CHECK(info_int(fresh, "position") == 0);
    OK(tidbit_session_append(fresh, many, 6));
    FAILS(TIDBIT_CONTEXT_FULL, tidbit_session_append(fresh, many, 3));
    OK(tidbit_options_set_int(o, TEXT("session.ignore_eos"), 1));
    OK(tidbit_session_set_sampling(fresh, o));
    other[0] = 0;
    generate(fresh, 2, other);
    FAILS(TIDBIT_CONTEXT_FULL, tidbit_session_next(fresh, &token, piece, sizeof piece, &length));
    OK(tidbit_session_output(fresh, TIDBIT_LOGITS, 1, again, vocab, &length));
    FAILS(TIDBIT_CONTEXT_FULL, tidbit_session_score(fresh, many, 2, scores, &total));
    OK(tidbit_session_score(fresh, many, 1, scores, &total));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_output(fresh, TIDBIT_LOGITS, 9, again, vocab, &length));
    FAILS(TIDBIT_BUFFER_TOO_SMALL, tidbit_session_save(session, NULL, 0, &length));
    saved = malloc(length);
    OK(tidbit_session_save(session, saved, length, &length));
    FAILS(TIDBIT_CONTEXT_FULL, tidbit_session_load(fresh, saved, length));
    OK(tidbit_options_set_int(o, TEXT("session.context"), 0));
    OK(tidbit_options_set_text(o, TEXT("session.cache"), TEXT("f32")));
    tidbit_session *wide = new_session(model, o);
    FAILS(TIDBIT_BAD_SAVE, tidbit_session_load(wide, saved, length));
    OK(tidbit_session_free(wide));
    free(saved);
    OK(tidbit_session_free(fresh));

    /* Handles of every wrong kind. */
    void *wrong[] = {NULL, model, o, (void *)1, (void *)~(uintptr_t)0, &wrong, (char *)session + 1};
    for (int i = 0; i < 7; i++) {
        tidbit_session *s = wrong[i], *out;
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_append(s, many, 1));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_append_text(s, TEXT("a"), NULL));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_next(s, NULL, piece, sizeof piece, &length));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_clone(s, &out));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_output(s, 0, 1, again, vocab, &length));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_embed(s, TEXT("a"), again, vocab, &length));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_score(s, many, 1, scores, &total));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_rewind(s, 0));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_tokens(s, tokens, 600, &length));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_save(s, NULL, 0, &length));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_load(s, NULL, 0));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_save_file(s, TEXT("x")));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_load_file(s, TEXT("x")));
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_set_sampling(s, NULL));
        CHECK(tidbit_session_cancel(s) == TIDBIT_INVALID_HANDLE);
        if (s != NULL) {
            FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_free(s));
            int64_t value;
            if (i > 2) {
                FAILS(TIDBIT_INVALID_HANDLE, tidbit_info_int(s, TEXT("position"), &value));
            }
        }
        tidbit_model *m = i == 1 ? (void *)session : wrong[i];
        FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_new(m, NULL, &out));
        CHECK(out == NULL);
    }
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_new(model, NULL, NULL));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_clone(session, NULL));
    OK(tidbit_options_set_int(o, TEXT("session.context"), 1 << 30));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_new(model, o, &fresh));
    OK(tidbit_options_set_int(o, TEXT("session.context"), 8));
    OK(tidbit_options_set_int(o, TEXT("session.threads"), 1 << 20));
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_new(model, o, &fresh));

    free(logits);
    free(again);
    OK(tidbit_options_free(random));
    OK(tidbit_options_free(o));
    /* The model first: the session keeps what it needs. */
    OK(tidbit_model_free(model));
    generate(session, 1, other);
    OK(tidbit_session_free(session));
    OK(tidbit_session_free(NULL));
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_free(session));
}

static tidbit_session *signalled;

static void on_signal(int number) {
    (void)number;
    tidbit_session_cancel(signalled);
}

static void cancelling(void) {
    tidbit_options *o = greedy();
    tidbit_model *model = open_model(o);
    tidbit_session *session = new_session(model, o);
    uint32_t tokens[512];
    for (int i = 0; i < 512; i++) {
        tokens[i] = (uint32_t)(i % 300);
    }
    /* Before a call: the next one that computes, once. */
    OK(tidbit_session_cancel(session));
    OK(tidbit_session_rewind(session, 0));
    FAILS(TIDBIT_CANCELLED, tidbit_session_append(session, tokens, 10));
    CHECK(info_int(session, "position") == 0);
    OK(tidbit_session_append(session, tokens, 10));
    OK(tidbit_session_cancel(session));
    char piece[64];
    size_t length;
    FAILS(TIDBIT_CANCELLED, tidbit_session_next(session, NULL, piece, sizeof piece, &length));
    OK(tidbit_session_next(session, NULL, piece, sizeof piece, &length));

    /* During a call, from a signal handler: sooner or later it hits, and nothing has changed then. */
    signalled = session;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval timer = {{0, 2000}, {0, 2000}}, none = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    int hits = 0;
    for (int i = 0; i < 200 && hits < 5; i++) {
        OK(tidbit_session_rewind(session, 0));
        tidbit_status status = tidbit_session_append(session, tokens, 512);
        CHECK(status == TIDBIT_OK || status == TIDBIT_CANCELLED);
        hits += status == TIDBIT_CANCELLED;
        CHECK(info_int(session, "position") == (status == TIDBIT_OK ? 512 : 0));
    }
    CHECK(setitimer(ITIMER_REAL, &none, NULL) == 0);
    CHECK(hits == 5);
    OK(tidbit_session_free(session));
    CHECK(tidbit_session_cancel(session) == TIDBIT_INVALID_HANDLE);
    OK(tidbit_model_free(model));
    OK(tidbit_options_free(o));
}

struct log {
    int warnings, infos;
    pthread_t thread;
};

static void on_record(int32_t level, const char *text, size_t length, void *user_data) {
    struct log *log = user_data;
    CHECK(length > 0 && memchr(text, '\n', length) == NULL && memchr(text, 0, length) == NULL);
    CHECK(pthread_equal(log->thread, pthread_self()));
    *(level == TIDBIT_LOG_WARNING ? &log->warnings : &log->infos) += 1;
}

static void logging(void) {
    struct log log = {0, 0, pthread_self()};
    tidbit_options *o = greedy();
    OK(tidbit_options_set_log(o, TIDBIT_LOG_INFO, on_record, &log));
    tidbit_model *model = open_model(o);
    CHECK(log.infos == 1);
    tidbit_session *session = new_session(model, o);
    CHECK(log.infos == 2 && log.warnings == 0);
    uint32_t wrong = UINT32_MAX;
    FAILS(TIDBIT_INVALID_ARGUMENT, tidbit_session_append(session, &wrong, 1));
    CHECK(log.warnings == 1);
    OK(tidbit_session_free(session));
    CHECK(log.infos == 3);
    OK(tidbit_options_set_log(o, TIDBIT_LOG_WARNING, on_record, &log));
    session = new_session(model, o);
    OK(tidbit_session_free(session));
    CHECK(log.infos == 3);
    OK(tidbit_model_free(model));
    OK(tidbit_options_free(o));
}

/* Eight threads with two sessions each, in turn: what they write is what one thread writes. */
enum { N_THREADS = 8, N_SESSIONS = 16, N_TOKENS = 24 };

static const tidbit_model *shared_model;
static char texts[2][N_SESSIONS][2000];

static void write_texts(int which, int first, int step) {
    tidbit_session *sessions[2];
    int mine[2] = {first, first + step};
    for (int i = 0; i < 2; i++) {
        tidbit_options *o = new_options();
        OK(tidbit_options_set_int(o, TEXT("session.threads"), 1 + mine[i] % 3));
        OK(tidbit_options_set_int(o, TEXT("sampling.seed"), mine[i]));
        OK(tidbit_options_set_float(o, TEXT("sampling.temperature"), 1.0));
        sessions[i] = new_session(shared_model, o);
        OK(tidbit_options_free(o));
        char prompt[64];
        snprintf(prompt, sizeof prompt, "Story number %d: Once upon a time", mine[i]);
        OK(tidbit_session_append_text(sessions[i], prompt, strlen(prompt), NULL));
    }
    for (int n = 0; n < N_TOKENS; n++) {
        for (int i = 0; i < 2; i++) {
            generate(sessions[i], 1, texts[which][mine[i]]);
        }
    }
    for (int i = 0; i < 2; i++) {
        OK(tidbit_session_free(sessions[i]));
    }
}

static void *writer(void *argument) {
    write_texts(1, (int)(intptr_t)argument, N_THREADS);
    return NULL;
}

static void threads(void) {
    tidbit_model *model = open_model(NULL);
    shared_model = model;
    for (int i = 0; i < N_SESSIONS / 2; i++) {
        write_texts(0, i, N_SESSIONS / 2);
    }
    pthread_t ids[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        CHECK(pthread_create(&ids[i], NULL, writer, (void *)(intptr_t)i) == 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
    }
    for (int i = 0; i < N_SESSIONS; i++) {
        CHECK(strlen(texts[0][i]) > 0 && strcmp(texts[0][i], texts[1][i]) == 0);
        CHECK(i == 0 || strcmp(texts[0][i], texts[0][i - 1]) != 0);
    }
    OK(tidbit_model_free(model));
}

/* One session, used, cancelled and freed by several threads at once: each gets an answer. */
static tidbit_session *contested;
static int busy, done;
static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;

static void *contester(void *argument) {
    uint32_t tokens[64] = {0};
    for (int i = 0; i < 40; i++) {
        tidbit_status status = tidbit_session_append(contested, tokens, 64);
        CHECK(status == TIDBIT_OK || status == TIDBIT_BUSY || status == TIDBIT_CANCELLED || status == TIDBIT_CONTEXT_FULL ||
              status == TIDBIT_INVALID_HANDLE);
        pthread_mutex_lock(&counting);
        busy += status == TIDBIT_BUSY;
        done += status == TIDBIT_OK;
        pthread_mutex_unlock(&counting);
        if (argument != NULL && i % 10 == 5) {
            tidbit_session_cancel(contested);
        }
        tidbit_session_rewind(contested, 0);
    }
    return NULL;
}

static void contention(void) {
    tidbit_model *model = open_model(NULL);
    for (int round = 0; round < 5; round++) {
        tidbit_options *o = greedy();
        contested = new_session(model, o);
        OK(tidbit_options_free(o));
        pthread_t ids[4];
        for (int i = 0; i < 4; i++) {
            CHECK(pthread_create(&ids[i], NULL, contester, i == 0 ? &ids : NULL) == 0);
        }
        if (round % 2 == 0) {
            nanosleep(&(struct timespec){0, 20000000}, NULL);
            OK(tidbit_session_free(contested));
        }
        for (int i = 0; i < 4; i++) {
            CHECK(pthread_join(ids[i], NULL) == 0);
        }
        if (round % 2 == 1) {
            OK(tidbit_session_free(contested));
        }
    }
    CHECK(busy > 0 && done > 0);
    OK(tidbit_model_free(model));
}

/* Messages belong to threads. */
static void *other_thread(void *argument) {
    (void)argument;
    CHECK(tidbit_last_error(NULL)[0] == 0);
    FAILS(TIDBIT_INVALID_HANDLE, tidbit_session_rewind(NULL, 0));
    return NULL;
}

static void messages(void) {
    FAILS(TIDBIT_UNKNOWN_KEY, tidbit_info(NULL, TEXT("some key"), NULL, 0, (size_t[]){0}));
    pthread_t id;
    CHECK(pthread_create(&id, NULL, other_thread, NULL) == 0);
    CHECK(pthread_join(id, NULL) == 0);
    CHECK(strstr(tidbit_last_error(NULL), "some key") != NULL);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: api MODEL FOLDER\n");
        return 2;
    }
    model_path = argv[1];
    folder = argv[2];
    versions();
    info();
    options();
    opening();
    tokenizing();
    sessions();
    cancelling();
    logging();
    threads();
    contention();
    messages();
    puts("every check passed");
    return 0;
}
