/* SPDX-License-Identifier: Apache-2.0 */
/* The architecture that numbers of system calls belong to, as seccomp names it. */
#ifndef COVEN_SYSCALLS_ARCH_H
#define COVEN_SYSCALLS_ARCH_H

#include <linux/audit.h>

#if defined(__x86_64__)
#define COVEN_AUDIT_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define COVEN_AUDIT_ARCH AUDIT_ARCH_AARCH64
#else
#error "the system call filter does not know this architecture"
#endif

/* The newest call that syscalls.def was written for (Linux 6.12: mseal). */
#define COVEN_NEWEST_CALL 462

#endif
