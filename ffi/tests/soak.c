/* Opens, generates, saves, restores and closes, again and again: soak MODEL [TIMES]
 *
 * Prints the resident memory now and then, and fails when it grew by more than 2 MB from the first quarter to the end.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tidbit.h"

#define OK(call) \
    do { \
        if ((call) != TIDBIT_OK) { \
            fprintf(stderr, "%s: %s\n", #call, tidbit_last_error(NULL)); \
            exit(1); \
        } \
    } while (0)

/* Kilobytes of resident memory, from Linux; 0 elsewhere. */
static long resident(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    long kilobytes = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "VmRSS: %ld", &kilobytes) == 1) {
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return kilobytes;
}

static void set_int(tidbit_options *options, const char *key, int64_t value) {
    OK(tidbit_options_set_int(options, key, strlen(key), value));
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: soak MODEL [TIMES]\n");
        return 2;
    }
    int times = argc > 2 ? atoi(argv[2]) : 10000;
    long early = 0;
    for (int i = 1; i <= times; i++) {
        tidbit_options *options;
        tidbit_model *model;
        tidbit_session *session, *other;
        char piece[64];
        size_t length;
        OK(tidbit_options_new(&options));
        /* Copied and in place, with and without threads of its own. */
        const char *access = i % 2 == 0 ? "copy" : "in-place";
        OK(tidbit_options_set_text(options, "model.access", 12, access, strlen(access)));
        set_int(options, "session.threads", 1 + i % 2);
        set_int(options, "session.context", 64);
        OK(tidbit_model_open(argv[1], strlen(argv[1]), options, &model));
        OK(tidbit_session_new(model, options, &session));
        OK(tidbit_session_append_text(session, "Once upon", 9, NULL));
        OK(tidbit_session_next(session, NULL, piece, sizeof piece, &length));
        OK(tidbit_session_clone(session, &other));
        OK(tidbit_session_next(other, NULL, piece, sizeof piece, &length));
        if (tidbit_session_save(session, NULL, 0, &length) != TIDBIT_BUFFER_TOO_SMALL) {
            return 1;
        }
        uint8_t *saved = malloc(length);
        OK(tidbit_session_save(session, saved, length, &length));
        OK(tidbit_session_load(other, saved, length));
        /* Failures leave nothing behind either. */
        if (tidbit_session_load(other, saved, length - 1) == TIDBIT_OK) {
            return 1;
        }
        free(saved);
        OK(tidbit_session_free(session));
        OK(tidbit_model_free(model));
        OK(tidbit_options_free(options));
        OK(tidbit_session_free(other));
        if (i == times / 4) {
            early = resident();
        }
        if (i % (times / 10 > 0 ? times / 10 : 1) == 0) {
            printf("%6d times: %ld kB\n", i, resident());
        }
    }
    long grown = resident() - early;
    printf("grown by %ld kB since the first quarter\n", grown);
    return grown > 2048;
}
