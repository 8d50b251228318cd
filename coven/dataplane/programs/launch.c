/* SPDX-License-Identifier: Apache-2.0 */
/* coven-launch: become the process that a component or worker is to be, then exec it. The pid stays the same.
 *
 *   coven-launch [options] -- PROGRAM [ARGUMENT...]
 *
 *   --uid N, --gid N            numeric user and group; all other groups are dropped
 *   --cgroup DIR                join this cgroup (several: v1 hierarchies)
 *   --rlimit-NAME SOFT[:HARD]   as, core, cpu, data, fsize, memlock, nofile, nproc, stack ("unlimited" is a number)
 *   --new-net, --new-ipc, --new-uts  namespaces of its own
 *   --new-user                  a user namespace of its own that knows only this user and group; without root it also
 *                               gives the other namespaces and --root
 *   --filter component|worker   only the system calls of syscalls.def
 *   --tell M                    what the filter tells of goes to a supervisor: descriptor M is a socket that gets one
 *                               message with the listener (`filter`) and the user namespace (`user`), if there are any
 *   --scope                     signals and abstract sockets reach only itself and its children (Landlock)
 *   --root                      a private root: the host's system folders read only, /proc, /dev, /tmp
 *   --proc-all                  there, /proc also shows processes of other users
 *   --bind PATH, --bind-ro PATH and these, at the same place (imply nothing without --root)
 *   --bind-exact PATH           read only, refused if there is a symbolic link anywhere in the path
 *   --fd N=M                    descriptor M becomes N; what is not named is closed (0, 1, 2: /dev/null)
 *   --env KEY=VALUE             the environment is these and nothing else
 *   --cwd DIR, --nice N, --cpu LIST
 *   --best-effort               as root only what root can do is skipped instead of refused
 *
 *   coven-launch --probe        says what of this works here: `user`, `root`, `filter`, `tell`, `scope`
 *
 * Always: no_new_privs, no capabilities, own session, signals at their defaults. A step that fails is told on
 * standard error with its errno; the exit status is then 125 and nothing of PROGRAM has run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch.h"

#define FAILED 125
#define MAX_LIST 64
#define MAX_ENV 256
#define FD_LIFT 20 /* descriptors are moved here and above before they are put in place */

struct placement {
    int target, source;
};

struct limit {
    int resource;
    struct rlimit value;
};

static struct {
    bool new_net, new_ipc, new_uts, root, proc_all, best_effort, has_nice, has_cpu, scope;
    struct launch_user user;
    enum launch_filter filter;
    int tell; /* socket, -1: none */
    int nice;
    cpu_set_t cpu;
    const char *cwd;
    const char *cgroups[MAX_LIST];
    struct limit limits[16];
    struct bind binds[MAX_LIST];
    struct placement fds[MAX_LIST];
    char *env[MAX_ENV + 1];
    unsigned n_cgroups, n_limits, n_binds, n_fds, n_env;
    char **argv;
} want = {.tell = -1};

/* Standard error of the caller: told there even when descriptor 2 has become something else. */
static int complaints = STDERR_FILENO;

void launch_die(int error, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    int n;

    va_start(arguments, format);
    n = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= sizeof(text))
        n = (int)strlen(text);
    if (error)
        dprintf(complaints, "coven-launch: %.*s: %s\n", n, text, strerror(error));
    else
        dprintf(complaints, "coven-launch: %.*s\n", n, text);
    _exit(FAILED);
}

void launch_need(int result, const char *what, const char *detail)
{
    int error = errno;

    if (result >= 0)
        return;
    if (want.best_effort && (error == EPERM || error == EACCES || error == ENOSYS))
        return;
    launch_die(error, "%s%s%s", what, detail ? " " : "", detail ? detail : "");
}

/* ---- arguments --------------------------------------------------------------------------------- */

static long number(const char *option, const char *text, long min, long max)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < min || value > max)
        launch_die(0, "%s: %s is not a number from %ld to %ld", option, text, min, max);
    return value;
}

static rlim_t limit_value(const char *option, const char *text)
{
    char *end;
    unsigned long long value;

    if (!strcmp(text, "unlimited"))
        return RLIM_INFINITY;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-')
        launch_die(0, "%s: %s is not a limit", option, text);
    return value;
}

static void add_limit(const char *option, const char *name, char *text)
{
    static const struct {
        const char *name;
        int resource;
    } known[] = {{"as", RLIMIT_AS},         {"core", RLIMIT_CORE},   {"cpu", RLIMIT_CPU},
                 {"data", RLIMIT_DATA},     {"fsize", RLIMIT_FSIZE}, {"memlock", RLIMIT_MEMLOCK},
                 {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"stack", RLIMIT_STACK}};
    char *colon = strchr(text, ':');

    if (want.n_limits == sizeof(want.limits) / sizeof(want.limits[0]))
        launch_die(0, "too many limits");
    if (colon)
        *colon = 0;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name))
            continue;
        want.limits[want.n_limits].resource = known[i].resource;
        want.limits[want.n_limits].value.rlim_cur = limit_value(option, text);
        want.limits[want.n_limits].value.rlim_max = limit_value(option, colon ? colon + 1 : text);
        want.n_limits++;
        return;
    }
    launch_die(0, "%s: no such limit", option);
}

static void add_fd(const char *option, char *text)
{
    char *equals = strchr(text, '=');
    struct placement *place = &want.fds[want.n_fds];

    if (!equals || want.n_fds == MAX_LIST)
        launch_die(0, "%s: %s is not N=M, or there are too many", option, text);
    *equals = 0;
    place->target = (int)number(option, text, 0, FD_LIFT - 1);
    place->source = (int)number(option, equals + 1, 0, INT32_MAX);
    want.n_fds++;
}

static void add_bind(const char *path, bool writable)
{
    if (want.n_binds == MAX_LIST)
        launch_die(0, "too many folders to bind");
    if (path[0] != '/')
        launch_die(0, "%s to bind: not an absolute path", path);
    want.binds[want.n_binds++] = (struct bind){.path = path, .writable = writable, .tree = -1};
}

/* "0,2-3": numbers and ranges. */
static void set_cpus(const char *option, char *text)
{
    char *rest;

    CPU_ZERO(&want.cpu);
    for (char *part = strtok_r(text, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        char *dash = strchr(part, '-');
        long last, cpu;

        if (dash)
            *dash = 0;
        cpu = number(option, part, 0, CPU_SETSIZE - 1);
        last = dash ? number(option, dash + 1, cpu, CPU_SETSIZE - 1) : cpu;
        for (; cpu <= last; cpu++)
            CPU_SET((size_t)cpu, &want.cpu);
    }
    want.has_cpu = true;
}

static bool set_flag(const char *option)
{
    if (!strcmp(option, "--new-net"))
        want.new_net = true;
    else if (!strcmp(option, "--new-ipc"))
        want.new_ipc = true;
    else if (!strcmp(option, "--new-uts"))
        want.new_uts = true;
    else if (!strcmp(option, "--new-user"))
        want.user.own_namespace = true;
    else if (!strcmp(option, "--scope"))
        want.scope = true;
    else if (!strcmp(option, "--root"))
        want.root = true;
    else if (!strcmp(option, "--proc-all"))
        want.proc_all = true;
    else if (!strcmp(option, "--best-effort"))
        want.best_effort = true;
    else
        return false;
    return true;
}

static enum launch_filter filter_kind(const char *option, const char *text)
{
    if (!strcmp(text, "component"))
        return LAUNCH_FILTER_COMPONENT;
    if (!strcmp(text, "worker"))
        return LAUNCH_FILTER_WORKER;
    launch_die(0, "%s: %s is neither component nor worker", option, text);
}

static void set_option(const char *option, char *value)
{
    if (!strcmp(option, "--uid")) {
        want.user.uid = (uid_t)number(option, value, 0, UINT32_MAX - 1);
        want.user.has_uid = true;
    } else if (!strcmp(option, "--gid")) {
        want.user.gid = (gid_t)number(option, value, 0, UINT32_MAX - 1);
        want.user.has_gid = true;
    } else if (!strcmp(option, "--cgroup")) {
        if (want.n_cgroups == MAX_LIST)
            launch_die(0, "too many cgroups");
        want.cgroups[want.n_cgroups++] = value;
    } else if (!strncmp(option, "--rlimit-", 9)) {
        add_limit(option, option + 9, value);
    } else if (!strcmp(option, "--bind")) {
        add_bind(value, true);
    } else if (!strcmp(option, "--bind-ro")) {
        add_bind(value, false);
    } else if (!strcmp(option, "--bind-exact")) {
        add_bind(value, false);
        want.binds[want.n_binds - 1].exact = true;
    } else if (!strcmp(option, "--fd")) {
        add_fd(option, value);
    } else if (!strcmp(option, "--filter")) {
        want.filter = filter_kind(option, value);
    } else if (!strcmp(option, "--tell")) {
        want.tell = (int)number(option, value, 0, INT32_MAX);
    } else if (!strcmp(option, "--env")) {
        if (want.n_env == MAX_ENV || !strchr(value, '='))
            launch_die(0, "--env %s: not KEY=VALUE, or there are too many", value);
        want.env[want.n_env++] = value;
    } else if (!strcmp(option, "--cwd")) {
        want.cwd = value;
    } else if (!strcmp(option, "--nice")) {
        want.nice = (int)number(option, value, -20, 19);
        want.has_nice = true;
    } else if (!strcmp(option, "--cpu")) {
        set_cpus(option, value);
    } else {
        launch_die(0, "%s: no such option", option);
    }
}

static void parse(int argc, char **argv)
{
    int i = 1;

    for (; i < argc && strcmp(argv[i], "--"); i++) {
        if (set_flag(argv[i]))
            continue;
        if (i + 1 >= argc)
            launch_die(0, "%s: a value is missing, or there is no such option", argv[i]);
        set_option(argv[i], argv[i + 1]);
        i++;
    }
    if (i + 1 >= argc)
        launch_die(0, "no program: it comes behind --");
    want.argv = argv + i + 1;
    if (want.argv[0][0] != '/')
        launch_die(0, "%s: the program must be an absolute path", want.argv[0]);
}

/* ---- descriptors ------------------------------------------------------------------------------- */

/* Put every named descriptor in its place and close all others. */
static void place_descriptors(void)
{
    int lifted[MAX_LIST];
    bool named[3] = {false, false, false};

    complaints = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, FD_LIFT);
    if (complaints < 0)
        complaints = STDERR_FILENO;
    for (unsigned i = 0; i < want.n_fds; i++) {
        lifted[i] = fcntl(want.fds[i].source, F_DUPFD_CLOEXEC, FD_LIFT);
        if (lifted[i] < 0)
            launch_die(errno, "--fd %d=%d", want.fds[i].target, want.fds[i].source);
    }
    for (unsigned i = 0; i < want.n_fds; i++)
        if (want.fds[i].target < 3)
            named[want.fds[i].target] = true;
    for (int fd = 0; fd < 3; fd++) {
        int null;

        if (named[fd])
            continue;
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (null < 0)
            launch_die(errno, "/dev/null");
        if (null != fd) {
            if (dup2(null, fd) < 0)
                launch_die(errno, "descriptor %d", fd);
            close(null);
        } else {
            fcntl(fd, F_SETFD, 0);
        }
    }
    /* Everything but 0, 1, 2 goes at exec; the targets below lose that mark through dup2. */
    if (close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
        launch_die(errno, "close_range");
    for (unsigned i = 0; i < want.n_fds; i++)
        if (dup2(lifted[i], want.fds[i].target) < 0)
            launch_die(errno, "--fd %d=%d", want.fds[i].target, want.fds[i].source);
}

/* ---- cgroup ------------------------------------------------------------------------------------ */

static int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int result = 0;

    if (fd < 0)
        return -1;
    if (write(fd, text, strlen(text)) < 0)
        result = -1;
    close(fd);
    return result;
}

/* A thread that moves itself through `tasks` (v1) does not take the kernel's thread-group lock, whose
 * writers wait for an RCU grace period: several ms each. This process has one thread, so it is the same. */
static void join_cgroup(const char *folder)
{
    char path[4096];

    if (strlen(folder) + sizeof("/cgroup.procs") > sizeof(path))
        launch_die(ENAMETOOLONG, "--cgroup %s", folder);
    snprintf(path, sizeof(path), "%s/tasks", folder);
    if (!write_text(path, "0"))
        return;
    snprintf(path, sizeof(path), "%s/cgroup.procs", folder);
    launch_need(write_text(path, "0"), "--cgroup", folder);
}

static void default_signals(void)
{
    sigset_t none;

    for (int signal_number = 1; signal_number < NSIG; signal_number++)
        signal(signal_number, SIG_DFL); /* fails for KILL and STOP, which cannot be changed anyway */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Hand the listener of the filter, and the namespace that everything it starts stays in, to whoever watches it. */
static void tell_watcher(int namespace, int listener)
{
    int fds[2];
    unsigned n = 0;
    char text[32] = "";
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(fds))];
    } control = {.bytes = {0}};
    struct iovec part = {.iov_base = text};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    if (namespace >= 0) {
        fds[n++] = namespace;
        strcat(text, "user ");
    }
    if (listener >= 0) {
        fds[n++] = listener;
        strcat(text, "filter ");
    }
    if (n == 0)
        return;
    part.iov_len = strlen(text);
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(n * sizeof(int));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(&control.header), fds, n * sizeof(int));
    if (sendmsg(want.tell, &message, MSG_NOSIGNAL) < 0)
        launch_die(errno, "--tell");
}

static void set_surroundings(void)
{
    if (want.new_net)
        launch_need(unshare(CLONE_NEWNET), "--new-net", NULL);
    if (want.new_ipc)
        launch_need(unshare(CLONE_NEWIPC), "--new-ipc", NULL);
    if (want.new_uts && !unshare(CLONE_NEWUTS))
        launch_need(sethostname("coven", 5), "--new-uts", NULL);
    if (want.root)
        launch_build_root(want.binds, want.n_binds, want.proc_all);
    if (want.cwd && chdir(want.cwd) < 0)
        launch_die(errno, "--cwd %s", want.cwd);
    for (unsigned i = 0; i < want.n_limits; i++)
        if (setrlimit((__rlimit_resource_t)want.limits[i].resource, &want.limits[i].value) < 0)
            launch_die(errno, "setting a limit");
}

int main(int argc, char **argv)
{
    int namespace = -1, listener = -1;

    if (argc == 2 && !strcmp(argv[1], "--probe"))
        return launch_probe();
    parse(argc, argv);
    place_descriptors();
    default_signals();
    setsid();
    umask(022);
    for (unsigned i = 0; i < want.n_cgroups; i++)
        join_cgroup(want.cgroups[i]);
    if (want.has_nice)
        launch_need(setpriority(PRIO_PROCESS, 0, want.nice), "--nice", NULL);
    if (want.has_cpu && sched_setaffinity(0, sizeof(want.cpu), &want.cpu) < 0)
        launch_die(errno, "--cpu");
    launch_begin_user(&want.user);
    set_surroundings();
    launch_become_user(&want.user);
    if (want.tell >= 0 && want.user.own_namespace)
    namespace = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
    if (want.scope)
        launch_set_scope();
    if (want.filter != LAUNCH_FILTER_NONE)
        listener = launch_set_filter(want.filter, want.tell >= 0 && want.filter == LAUNCH_FILTER_COMPONENT);
    if (want.tell >= 0)
        tell_watcher(namespace, listener);
    execve(want.argv[0], want.argv, want.env);
    launch_die(errno, "%s", want.argv[0]);
}
