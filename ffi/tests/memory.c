/* The system has no more memory: each call that wants some says so, and works when there is some again: memory MODEL
 *
 * Not under sanitizers, which take address space themselves.
 */

#define _XOPEN_SOURCE 700

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tidbit.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, tidbit_last_error(NULL)); \
            exit(1); \
        } \
    } while (0)

/* Leaves so many bytes of address space to be had; 0: as many as before. */
static void leave(size_t bytes) {
    static struct rlimit before;
    if (before.rlim_cur == 0) {
        CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    }
    struct rlimit limit = before;
    if (bytes > 0) {
        unsigned long pages;
        FILE *file = fopen("/proc/self/statm", "r");
        CHECK(file != NULL && fscanf(file, "%lu", &pages) == 1);
        fclose(file);
        limit.rlim_cur = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + bytes;
    }
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

int main(int argc, char **argv) {
    struct stat file;
    if (argc != 2 || stat(argv[1], &file) != 0) {
        fprintf(stderr, "usage: memory MODEL\n");
        return 2;
    }
    size_t path_length = strlen(argv[1]), length;
    tidbit_options *options;
    tidbit_model *model;
    tidbit_session *session;
    CHECK(tidbit_options_new(&options) == TIDBIT_OK);
    CHECK(tidbit_options_set_int(options, "session.threads", 15, 4) == TIDBIT_OK);

    leave((size_t)file.st_size / 2);
    CHECK(tidbit_model_open(argv[1], path_length, options, &model) == TIDBIT_OUT_OF_MEMORY);
    CHECK(model == NULL && tidbit_last_error(&length)[0] != 0 && length > 0);
    leave(0);
    CHECK(tidbit_model_open(argv[1], path_length, options, &model) == TIDBIT_OK);

    /* Cache and activations; then also the stacks of threads. */
    int failures = 0;
    for (size_t kilobytes = 256; kilobytes <= 1 << 16; kilobytes *= 2) {
        leave(kilobytes << 10);
        tidbit_status status = tidbit_session_new(model, options, &session);
        leave(0);
        CHECK(status == TIDBIT_OK || status == TIDBIT_OUT_OF_MEMORY);
        CHECK((status == TIDBIT_OK) == (session != NULL));
        failures += status != TIDBIT_OK;
        CHECK(status != TIDBIT_OK || tidbit_session_free(session) == TIDBIT_OK);
    }
    CHECK(failures >= 3);

    /* What a session takes later, it may be refused; its text is then as it was. */
    CHECK(tidbit_session_new(model, options, &session) == TIDBIT_OK);
    leave(4096);
    tidbit_status status = tidbit_session_append_text(session, "Once upon a time", 16, NULL);
    CHECK(status == TIDBIT_OK || status == TIDBIT_OUT_OF_MEMORY);
    leave(0);
    CHECK(tidbit_session_rewind(session, 0) == TIDBIT_OK);
    CHECK(tidbit_session_append_text(session, "Once upon a time", 16, NULL) == TIDBIT_OK);
    char piece[64];
    CHECK(tidbit_session_next(session, NULL, piece, sizeof piece, &length) == TIDBIT_OK);
    CHECK(tidbit_session_free(session) == TIDBIT_OK);
    CHECK(tidbit_model_free(model) == TIDBIT_OK);
    CHECK(tidbit_options_free(options) == TIDBIT_OK);
    puts("every refusal was a status");
    return 0;
}
