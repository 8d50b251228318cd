/* SPDX-License-Identifier: Apache-2.0 */
/* Who a launched process is: user, group, user namespace, capabilities, and whom its signals reach. */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Landlock since ABI 6 (Linux 6.12), which the headers of a build host need not know. */
#define SCOPE_ABI 6
#define SCOPE_ABSTRACT_SOCKETS 1u
#define SCOPE_SIGNALS 2u
#define LANDLOCK_VERSION 1u /* flag: give the ABI's number */
#define NR_LANDLOCK_CREATE_RULESET 444
#define NR_LANDLOCK_RESTRICT_SELF 446

static void write_map(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        launch_die(errno, "--new-user: %s", path);
    close(fd);
}

/* Only the own user and group exist in there, by the numbers they have outside: files and /proc look as before. */
static void enter_own_namespace(uid_t uid, gid_t gid)
{
    char text[64];

    if (unshare(CLONE_NEWUSER) < 0)
        launch_die(errno, "--new-user");
    write_map("/proc/self/setgroups", "deny");
    snprintf(text, sizeof(text), "%u %u 1", uid, uid);
    write_map("/proc/self/uid_map", text);
    snprintf(text, sizeof(text), "%u %u 1", gid, gid);
    write_map("/proc/self/gid_map", text);
}

void launch_begin_user(const struct launch_user *user)
{
    if (user->own_namespace && geteuid() != 0)
        enter_own_namespace(geteuid(), getegid());
}

void launch_become_user(const struct launch_user *user)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    bool is_root = geteuid() == 0;

    if (user->has_uid || user->has_gid)
        launch_need(setgroups(0, NULL), "dropping groups", NULL);
    if (user->has_gid)
        launch_need(setresgid(user->gid, user->gid, user->gid), "--gid", NULL);
    if (user->own_namespace && is_root) {
        if (user->has_uid)
            launch_need(setresuid(user->uid, user->uid, user->uid), "--uid", NULL);
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* after a change of user the maps below would be root's */
        enter_own_namespace(geteuid(), getegid());
    }
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
            launch_die(errno, "dropping capability %d", cap);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (user->has_uid)
        launch_need(setresuid(user->uid, user->uid, user->uid), "--uid", NULL);
    if (syscall(SYS_capset, &header, none) < 0)
        launch_die(errno, "dropping capabilities");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        launch_die(errno, "no_new_privs");
}

void launch_set_scope(void)
{
    const struct {
        uint64_t files, network, scope;
    } ruleset = {.scope = SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS};
    long version = syscall(NR_LANDLOCK_CREATE_RULESET, NULL, 0, LANDLOCK_VERSION);
    int fd;

    if (version < SCOPE_ABI)
        launch_die(version < 0 ? errno : ENOSYS, "--scope");
    fd = (int)syscall(NR_LANDLOCK_CREATE_RULESET, &ruleset, sizeof(ruleset), 0);
    if (fd < 0 || syscall(NR_LANDLOCK_RESTRICT_SELF, fd, 0) < 0)
        launch_die(errno, "--scope");
    close(fd);
}
