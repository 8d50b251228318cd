/* SPDX-License-Identifier: Apache-2.0 */
/* What of the isolation this host has: each is tried by a child, which either gets to the end or dies of it. */
#define _GNU_SOURCE
#include "launch.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define OTHER_USER 65534 /* as root: what a component's user, which is not root, would get */

static void become(bool with_namespace)
{
    const struct launch_user user = {.has_uid = geteuid() == 0,
                                     .has_gid = geteuid() == 0,
                                     .own_namespace = with_namespace,
                                     .uid = OTHER_USER,
                                     .gid = OTHER_USER};

    launch_begin_user(&user);
    launch_become_user(&user);
}

static void try_user(void)
{
    become(true);
}

/* As root this needs no user namespace; without, it is what gives the right. */
static void try_root(void)
{
    const struct launch_user user = {.own_namespace = geteuid() != 0};

    launch_begin_user(&user);
    if (unshare(CLONE_NEWNET) < 0 || unshare(CLONE_NEWIPC) < 0)
        launch_die(0, "namespaces");
    launch_build_root(NULL, 0, false);
}

static void try_filter(void)
{
    become(false);
    launch_set_filter(LAUNCH_FILTER_COMPONENT, false);
}

static void try_tell(void)
{
    become(false);
    launch_set_filter(LAUNCH_FILTER_COMPONENT, true);
}

static void try_scope(void)
{
    become(false);
    launch_set_scope();
}

static bool works(void (*try)(void))
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);

        dup2(null, STDERR_FILENO); /* why it does not is of no use here */
        try();
        _exit(0);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int launch_probe(void)
{
    static const struct {
        const char *word;
        void (*try)(void);
    } known[] = {
        {"user", try_user}, {"root", try_root}, {"filter", try_filter}, {"tell", try_tell}, {"scope", try_scope}};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (works(known[i].try))
            printf("%s\n", known[i].word);
    return 0;
}
