/* Prints the version of the library that it is linked with. */

#include <stdio.h>

#include "tidbit.h"

int main(void) {
    return puts(tidbit_version()) < 0;
}
