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
#include <sys/wait.h>
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

/* Runs `attempt` with ever more memory left, each in a process of its own: it must succeed or be refused, both some times. */
static void sweep(const char *what, size_t step, size_t most, tidbit_status (*attempt)(void)) {
    int failures = 0, successes = 0;
    for (size_t kilobytes = step; kilobytes <= most; kilobytes += step) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            leave(kilobytes << 10);
            tidbit_status status = attempt();
            leave(0);
            CHECK(status == TIDBIT_OK || status == TIDBIT_OUT_OF_MEMORY);
            _exit(status == TIDBIT_OK ? 0 : 2);
        }
        int ended;
        CHECK(waitpid(child, &ended, 0) == child);
        if (!WIFEXITED(ended) || (WEXITSTATUS(ended) != 0 && WEXITSTATUS(ended) != 2)) {
            fprintf(stderr, "%s with %zu KiB left: status %#x\n", what, kilobytes, (unsigned)ended);
            exit(1);
        }
        failures += WEXITSTATUS(ended) == 2;
        successes += WEXITSTATUS(ended) == 0;
    }
    CHECK(failures >= 3 && successes >= 3);
}

static const char *path;
static tidbit_options *options;
static tidbit_model *model;
static tidbit_session *alone;

static tidbit_status open_model(void) {
    tidbit_model *opened;
    tidbit_status status = tidbit_model_open(path, strlen(path), options, &opened);
    CHECK((status == TIDBIT_OK) == (opened != NULL));
    CHECK(status != TIDBIT_OK || tidbit_model_free(opened) == TIDBIT_OK);
    return status;
}

static tidbit_status make_session(void) {
    tidbit_session *session;
    tidbit_status status = tidbit_session_new(model, options, &session);
    CHECK((status == TIDBIT_OK) == (session != NULL));
    CHECK(status != TIDBIT_OK || tidbit_session_free(session) == TIDBIT_OK);
    return status;
}

static tidbit_status append_text(void) {
    return tidbit_session_append_text(alone, "Once upon a time", 16, NULL);
}

int main(int argc, char **argv) {
    struct stat file;
    if (argc != 2 || stat(argv[1], &file) != 0) {
        fprintf(stderr, "usage: memory MODEL\n");
        return 2;
    }
    path = argv[1];
    size_t length;
    tidbit_session *session;
    CHECK(tidbit_options_new(&options) == TIDBIT_OK);
    CHECK(tidbit_options_set_int(options, "session.threads", 15, 4) == TIDBIT_OK);

    leave((size_t)file.st_size / 2);
    CHECK(tidbit_model_open(path, strlen(path), options, &model) == TIDBIT_OUT_OF_MEMORY);
    CHECK(model == NULL && tidbit_last_error(&length)[0] != 0 && length > 0);
    leave(0);
    CHECK(tidbit_model_open(path, strlen(path), options, &model) == TIDBIT_OK);

    /* Steps of less than a thread takes; then beyond what the C library sets aside for a thread's small things. */
    sweep("opening", 64, 16 << 10, open_model);
    sweep("a session", 64, 32 << 10, make_session);
    sweep("a session", 4 << 10, 400 << 10, make_session);

    /* What a text takes, and the tokenizer that is loaded for it. Threads would not be there in another process. */
    CHECK(tidbit_options_set_int(options, "session.threads", 15, 1) == TIDBIT_OK);
    CHECK(tidbit_session_new(model, options, &alone) == TIDBIT_OK);
    sweep("a text", 16, 6 << 10, append_text);
    CHECK(tidbit_session_free(alone) == TIDBIT_OK);
    CHECK(tidbit_options_set_int(options, "session.threads", 15, 4) == TIDBIT_OK);

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
