/* SPDX-License-Identifier: Apache-2.0 */
/* The system call filter of coven-launch: a table (syscalls.def) made into a seccomp program. It is long, but the kernel
 * runs it only for what it judges by arguments or refuses: what is always allowed it remembers in a bitmap. */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "syscalls_arch.h"

#define MAX_STEPS 1024
#define X32_BIT 0x40000000u /* numbers of the x32 ABI: the same calls again, by another name */
/* A child of the component's parent would be left to the supervisor as a zombie. */
#define CLONE_REFUSED                                                                                                  \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET |       \
     CLONE_PARENT)
#define REFUSE(error) (SECCOMP_RET_ERRNO | (error))

struct program {
    struct sock_filter step[MAX_STEPS];
    unsigned short n;
};

static void add(struct program *program, struct sock_filter step)
{
    if (program->n == MAX_STEPS)
        launch_die(E2BIG, "--filter");
    program->step[program->n++] = step;
}

static void load(struct program *program, size_t offset)
{
    add(program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset));
}

static void end(struct program *program, uint32_t action)
{
    add(program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action));
}

/* If the loaded word is `value`: end with the action. */
static void on(struct program *program, uint32_t value, uint32_t action)
{
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1));
    end(program, action);
}

/* Begin a part of four steps for one call, judged by the low half of its first argument; all flags and families are
 * 32 bits wide. */
static void on_argument(struct program *program, uint32_t call, struct sock_filter test, uint32_t yes, uint32_t no)
{
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 4));
    load(program, offsetof(struct seccomp_data, args[0])); /* little endian: both architectures are */
    add(program, test);
    end(program, yes);
    end(program, no);
}

static void write_program(struct program *program, enum launch_filter kind, uint32_t told)
{
    uint32_t of_worker = kind == LAUNCH_FILTER_WORKER ? SECCOMP_RET_ALLOW : REFUSE(EPERM);

    load(program, offsetof(struct seccomp_data, arch));
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, COVEN_AUDIT_ARCH, 1, 0));
    end(program, told);
    load(program, offsetof(struct seccomp_data, nr));
#define ALLOW(call) on(program, __NR_##call, SECCOMP_RET_ALLOW);
#define WORKER(call) on(program, __NR_##call, of_worker);
#define TELL(call) on(program, __NR_##call, told);
#include "syscalls.def"
#undef TELL
#undef WORKER
#undef ALLOW
    /* its flags are in memory, where they can change: the C library falls back to clone */
    on(program, __NR_clone3, REFUSE(ENOSYS));
    on_argument(program, __NR_clone, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_REFUSED, 0, 1),
                told, SECCOMP_RET_ALLOW);
    /* the C library asks nscd about users: not worth telling */
    on_argument(program, __NR_socket, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 0, 1),
                REFUSE(EPERM), told);
    on_argument(program, __NR_socketpair, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 0, 1),
                SECCOMP_RET_ALLOW, REFUSE(EPERM));
#ifdef __x86_64__
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1));
    end(program, told);
#endif
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, COVEN_NEWEST_CALL, 0, 1));
    end(program, REFUSE(ENOSYS));
    end(program, REFUSE(EPERM));
}

int launch_set_filter(enum launch_filter kind, bool tell)
{
    static struct program program;
    struct sock_fprog given;
    long listener;

    write_program(&program, kind, tell ? SECCOMP_RET_USER_NOTIF : REFUSE(EPERM));
    given = (struct sock_fprog){.len = program.n, .filter = program.step};
    listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, tell ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0, &given);
    if (listener < 0)
        launch_die(errno, "--filter");
    return tell ? (int)listener : -1;
}
