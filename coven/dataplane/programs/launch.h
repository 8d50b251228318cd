/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of coven-launch share. launch.c: arguments and all that is done to the process itself;
 * launch_root.c: the private root it sees; launch_user.c: who it is; launch_filter.c: what it may ask of the kernel;
 * launch_probe.c: which of these this host has. */
#ifndef COVEN_LAUNCH_H
#define COVEN_LAUNCH_H

#include <stdbool.h>
#include <sys/types.h>

struct bind {
    const char *path;
    bool writable, exact;
    int tree; /* detached copy of the mount, or -1 for a symbolic link */
    bool folder;
    char link[256];
};

struct launch_user {
    bool has_uid, has_gid;
    bool own_namespace; /* a user namespace in which there is nobody else */
    uid_t uid;
    gid_t gid;
};

enum launch_filter {
    LAUNCH_FILTER_NONE,
    LAUNCH_FILTER_COMPONENT,
    LAUNCH_FILTER_WORKER,
};

/* Say what failed, with the errno if it is not 0, and exit. */
__attribute__((noreturn, format(printf, 2, 3))) void launch_die(int error, const char *format, ...);
/* What only privileges give: skipped without them when --best-effort was said, refused otherwise. */
void launch_need(int result, const char *what, const char *detail);
/* Make a root of the system's folders and these, and enter it. proc_all: /proc shows other users' processes. */
void launch_build_root(struct bind *binds, unsigned n_binds, bool proc_all);
/* Without root: enter the user namespace at once, because it gives the right to make the others. */
void launch_begin_user(const struct launch_user *user);
/* Become the user, without capabilities and the way to get any. As root, the user namespace is entered here: mounts and
 * cgroups are still root's to make before. */
void launch_become_user(const struct launch_user *user);
/* Let signals and abstract sockets reach only this process and what it starts. */
void launch_set_scope(void);
/* Let through only the system calls of syscalls.def. tell: those it tells of wait for an answer; gives the listener,
 * else -1. */
int launch_set_filter(enum launch_filter kind, bool tell);
/* Print what of all this works here, a word a line; gives the exit status. */
int launch_probe(void);

#endif
