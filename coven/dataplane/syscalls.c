/* SPDX-License-Identifier: Apache-2.0 */
#include "syscalls.h"

#include <linux/audit.h>
#include <stddef.h>
#include <sys/syscall.h>

#include "syscalls_arch.h"

static const struct {
    uint32_t number;
    const char *name;
} told[] = {
#define ALLOW(call)
#define WORKER(call)
#define TELL(call) {__NR_##call, #call},
#include "syscalls.def"
#undef TELL
#undef WORKER
#undef ALLOW
    {__NR_clone, "clone"},
    {__NR_socket, "socket"},
};

const char *coven_syscall_name(uint32_t architecture, uint32_t number)
{
    if (architecture != COVEN_AUDIT_ARCH)
        return NULL;
    for (size_t i = 0; i < sizeof(told) / sizeof(told[0]); i++)
        if (told[i].number == number)
            return told[i].name;
    return NULL;
}
