/* SPDX-License-Identifier: Apache-2.0 */
/* Names of the system calls that the filter of coven-launch tells about (syscalls.def). */
#ifndef COVEN_SYSCALLS_H
#define COVEN_SYSCALLS_H

#include <stdint.h>

/* Name of a call that is told, as seccomp saw it; NULL for any other. */
const char *coven_syscall_name(uint32_t architecture, uint32_t number);

#endif
