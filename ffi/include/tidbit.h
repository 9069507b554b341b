/*
 * Tidbit: run quantized language models on the CPU.
 *
 * So far the library only says its version; models and sessions follow.
 */

#ifndef TIDBIT_H
#define TIDBIT_H

#ifdef __cplusplus
extern "C" {
#endif

/**
 * The version of this library, for example "0.1.0": UTF-8, ending in NUL.
 *
 * The text is static: it stays valid as long as the library is loaded, and the caller must not free it.
 * May be called from any thread at any time.
 */
const char *tidbit_version(void);

#ifdef __cplusplus
}
#endif

#endif /* TIDBIT_H */
