/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of coven-launch share. launch.c: arguments and all that is done to the process itself;
 * launch_root.c: the private root it sees. */
#ifndef COVEN_LAUNCH_H
#define COVEN_LAUNCH_H

#include <stdbool.h>

struct bind {
    const char *path;
    bool writable, exact;
    int tree; /* detached copy of the mount, or -1 for a symbolic link */
    bool folder;
    char link[256];
};

/* Say what failed, with the errno if it is not 0, and exit. */
__attribute__((noreturn, format(printf, 2, 3))) void launch_die(int error, const char *format, ...);
/* What only privileges give: skipped without them when --best-effort was said, refused otherwise. */
void launch_need(int result, const char *what, const char *detail);
/* Make a root of the system's folders and these, and enter it. proc_all: /proc shows other users' processes. */
void launch_build_root(struct bind *binds, unsigned n_binds, bool proc_all);

#endif
