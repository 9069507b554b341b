/* Continues a text with a model file, piece by piece: stream MODEL TEXT N_TOKENS
 *
 *     cc stream.c -I ../../include -L ../../../target/release -ltidbit -o stream
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tidbit.h"

/* Ends the program with the library's message, unless `status` says that it worked. */
static void check(tidbit_status status) {
    if (status != TIDBIT_OK) {
        fprintf(stderr, "error: %s (%s)\n", tidbit_last_error(NULL), tidbit_status_name(status));
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: stream MODEL TEXT N_TOKENS\n");
        return 2;
    }
    tidbit_options *options;
    check(tidbit_options_new(&options));
    /* Always the best token, so that the text is the same each time. */
    check(tidbit_options_set_float(options, "sampling.temperature", strlen("sampling.temperature"), 0.0));

    tidbit_model *model;
    check(tidbit_model_open(argv[1], strlen(argv[1]), options, &model));
    tidbit_session *session;
    check(tidbit_session_new(model, options, &session));
    check(tidbit_session_append_text(session, argv[2], strlen(argv[2]), NULL));

    printf("%s", argv[2]);
    for (int i = 0; i < atoi(argv[3]); i++) {
        char piece[256];
        size_t length;
        tidbit_status status = tidbit_session_next(session, NULL, piece, sizeof piece, &length);
        if (status != TIDBIT_END) {
            check(status);
        }
        fwrite(piece, 1, length, stdout);
        fflush(stdout);
        if (status == TIDBIT_END) {
            break;
        }
    }
    printf("\n");

    tidbit_session_free(session);
    tidbit_model_free(model);
    tidbit_options_free(options);
    return 0;
}
