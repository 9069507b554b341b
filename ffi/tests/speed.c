/* What the C path costs: speed MODEL [TOKENS]
 *
 * Prints nanoseconds for each token, by the host's own clock, of TOKENS tokens after the first; and with a third argument,
 * how long a prefill of 1,024 tokens goes on after it was cancelled, at worst of 20 times. ffi/tests/speed.sh compares with
 * `tidbit run`.
 */

#define _XOPEN_SOURCE 700

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tidbit.h"

#define OK(call) \
    do { \
        if ((call) != TIDBIT_OK) { \
            fprintf(stderr, "%s: %s\n", #call, tidbit_last_error(NULL)); \
            exit(1); \
        } \
    } while (0)

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static double returned;

static void *prefill(void *session) {
    static uint32_t tokens[1024];
    if (tidbit_session_append(session, tokens, 1024) == TIDBIT_OK) {
        fprintf(stderr, "the prefill ended before it was cancelled\n");
    }
    returned = now();
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: speed MODEL [TOKENS [cancel]]\n");
        return 2;
    }
    int n = argc > 2 ? atoi(argv[2]) : 100;
    tidbit_options *options;
    tidbit_model *model;
    tidbit_session *session;
    OK(tidbit_options_new(&options));
    OK(tidbit_options_set_float(options, "sampling.temperature", 20, 0.0));
    OK(tidbit_options_set_int(options, "session.ignore_eos", 18, 1));
    OK(tidbit_model_open(argv[1], strlen(argv[1]), options, &model));
    OK(tidbit_session_new(model, options, &session));
    if (argc > 3) {
        double worst = 0;
        for (int i = 0; i < 20; i++) {
            pthread_t thread;
            OK(tidbit_session_rewind(session, 0));
            pthread_create(&thread, NULL, prefill, session);
            nanosleep(&(struct timespec){0, 5000000 * (i + 1)}, NULL);
            double asked = now();
            tidbit_session_cancel(session);
            pthread_join(thread, NULL);
            worst = returned - asked > worst ? returned - asked : worst;
        }
        printf("%.1f ms\n", worst / 1e6);
        return worst > 50e6;
    }
    uint32_t first = 0;
    char piece[256];
    size_t length;
    OK(tidbit_session_append(session, &first, 1));
    OK(tidbit_session_next(session, NULL, piece, sizeof piece, &length));
    double started = now();
    for (int i = 0; i < n; i++) {
        OK(tidbit_session_next(session, NULL, piece, sizeof piece, &length));
    }
    printf("%.0f\n", (now() - started) / n);
    OK(tidbit_session_free(session));
    OK(tidbit_model_free(model));
    OK(tidbit_options_free(options));
    return 0;
}
