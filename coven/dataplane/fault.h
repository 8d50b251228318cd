/* SPDX-License-Identifier: Apache-2.0 */
/* Fault points of the crash tests. Nothing at all unless compiled with -DCOVEN_FAULTS; then the process kills
 * itself with SIGKILL at the n-th pass of the point named in its environment as COVEN_FAULT=name:n. */
#ifndef COVEN_FAULT_H
#define COVEN_FAULT_H

#ifdef COVEN_FAULTS

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline void coven_fault_pass(const char *name, unsigned long *passes)
{
    const char *wanted = getenv("COVEN_FAULT");
    size_t length = strlen(name);

    if (wanted == NULL || strncmp(wanted, name, length) != 0 || wanted[length] != ':')
        return;
    if (++*passes == strtoul(wanted + length + 1, NULL, 10))
        kill(getpid(), SIGKILL);
}

/* Passes are counted for each place in the source. */
#define COVEN_FAULT(name)                                                                                              \
    do {                                                                                                               \
        static unsigned long coven_fault_passes;                                                                       \
        coven_fault_pass(name, &coven_fault_passes);                                                                   \
    } while (0)

#else

#define COVEN_FAULT(name) ((void)0)

#endif

#endif
