/* SPDX-License-Identifier: Apache-2.0 */
/* coven-keeper: keeps copies of all descriptors and a living supervisor.
 *
 *   coven-keeper [--supervisor PID --fd N] -- PROGRAM [ARGUMENT...]
 *
 * PROGRAM is the supervisor; it finds the keeper's socket (SOCK_SEQPACKET) as descriptor 3. The keeper is
 * subreaper of everything below it: what a dead supervisor leaves behind becomes the keeper's child, is
 * reaped here and told to the successor. With --supervisor it joins a supervisor that is running already
 * (because an earlier keeper died) over the socket N, and only replaces it when it dies.
 *
 * Messages: `store NAME` + descriptors, `drop NAME`, `list` (answered by `fd NAME` + descriptors for each name,
 * then `end`), `exit`; to the supervisor: `reaped PID STATUS` (as of waitpid).
 *
 * It does as little as possible, because nothing watches it but the supervisor.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NAME_BYTES 200
#define MAX_FDS 16 /* descriptors of one name */
#define MAX_NAMES 4096
#define MESSAGE_BYTES 512
#define SOCKET_FD 3    /* in the supervisor */
#define HEALTHY_MS 500 /* a supervisor that lived this long is restarted at once again */
#define EXIT_MS 20000  /* time a supervisor has for an orderly end */

struct stored {
    struct stored *next;
    char name[NAME_BYTES];
    int fds[MAX_FDS];
    unsigned n_fds;
};

static struct {
    struct stored *names;
    unsigned n_names;
    char **argv;      /* the supervisor's */
    pid_t supervisor; /* 0: none at the moment */
    int pidfd;        /* of a supervisor that is no child, or -1 */
    int socket;       /* to it, or -1 */
    int64_t started_ms;
    int64_t restart_ms; /* when to start the next one; 0: none due */
    int64_t back_off_ms;
    int64_t exit_ms; /* when an orderly end that was asked for is forced; 0: none asked */
} keeper = {.pidfd = -1, .socket = -1};

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void complain(const char *what, int error)
{
    dprintf(STDERR_FILENO, "coven-keeper: %s: %s\n", what, strerror(error));
}

/* ---- descriptors ------------------------------------------------------------------------------- */

static void drop_name(const char *name)
{
    for (struct stored **link = &keeper.names; *link; link = &(*link)->next) {
        struct stored *entry = *link;

        if (strcmp(entry->name, name))
            continue;
        *link = entry->next;
        for (unsigned i = 0; i < entry->n_fds; i++)
            close(entry->fds[i]);
        free(entry);
        keeper.n_names--;
        return;
    }
}

/* Takes over the descriptors. A name that exists is replaced. */
static void store_name(const char *name, const int *fds, unsigned n_fds)
{
    struct stored *entry;
    struct stored **last = &keeper.names;
    size_t length = strlen(name);

    drop_name(name);
    entry = keeper.n_names < MAX_NAMES && *name && length < NAME_BYTES ? calloc(1, sizeof(*entry)) : NULL;
    if (!entry) {
        complain("store", ENOMEM);
        for (unsigned i = 0; i < n_fds; i++)
            close(fds[i]);
        return;
    }
    memcpy(entry->name, name, length + 1);
    memcpy(entry->fds, fds, n_fds * sizeof(*fds));
    entry->n_fds = n_fds;
    while (*last)
        last = &(*last)->next;
    *last = entry; /* listed in the order stored */
    keeper.n_names++;
}

/* ---- messages ---------------------------------------------------------------------------------- */

static int send_message(const char *text, const int *fds, unsigned n_fds, int flags)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    if (n_fds) {
        memset(&control, 0, sizeof(control));
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
    }
    return sendmsg(keeper.socket, &message, MSG_NOSIGNAL | flags) < 0 ? -errno : 0;
}

static void list_names(void)
{
    char text[NAME_BYTES + 8];

    for (struct stored *entry = keeper.names; entry; entry = entry->next) {
        int result;

        snprintf(text, sizeof(text), "fd %s", entry->name);
        result = send_message(text, entry->fds, entry->n_fds, 0);
        if (result < 0) {
            complain("list", -result);
            return;
        }
    }
    if (send_message("end", NULL, 0, 0) < 0)
        complain("list", EPIPE);
}

static void obey(const char *text, const int *fds, unsigned n_fds)
{
    if (!strncmp(text, "store ", 6) && n_fds) {
        store_name(text + 6, fds, n_fds);
        return;
    }
    for (unsigned i = 0; i < n_fds; i++)
        close(fds[i]);
    if (!strncmp(text, "drop ", 5))
        drop_name(text + 5);
    else if (!strcmp(text, "list"))
        list_names();
    else if (!strcmp(text, "exit"))
        keeper.exit_ms = now_ms() + EXIT_MS;
    else
        complain(text, EBADMSG);
}

static unsigned received_fds(struct msghdr *message, int *fds)
{
    unsigned n = 0;

    for (struct cmsghdr *item = CMSG_FIRSTHDR(message); item; item = CMSG_NXTHDR(message, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS)
            continue;
        n = (unsigned)((item->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        if (n > MAX_FDS)
            n = MAX_FDS;
        memcpy(fds, CMSG_DATA(item), n * sizeof(int));
    }
    return n;
}

/* Read all messages that are there. Returns false when the other end is closed. */
static bool read_messages(void)
{
    for (;;) {
        char text[MESSAGE_BYTES];
        union {
            struct cmsghdr header;
            char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
        } control;
        struct iovec part = {.iov_base = text, .iov_len = sizeof(text) - 1};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
        int fds[MAX_FDS];
        ssize_t n = recvmsg(keeper.socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

        if (n == 0)
            return false;
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        text[n] = 0;
        obey(text, fds, received_fds(&message, fds));
    }
}

/* ---- the supervisor ---------------------------------------------------------------------------- */

static void run_supervisor(int socket)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (socket == SOCKET_FD)
        fcntl(SOCKET_FD, F_SETFD, 0);
    else if (dup2(socket, SOCKET_FD) < 0)
        _exit(127);
    execv(keeper.argv[0], keeper.argv);
    complain(keeper.argv[0], errno);
    _exit(127);
}

static void plan_restart(void)
{
    int64_t now = now_ms();

    if (now - keeper.started_ms > HEALTHY_MS)
        keeper.back_off_ms = 0;
    keeper.restart_ms = now + keeper.back_off_ms;
    keeper.back_off_ms = keeper.back_off_ms ? keeper.back_off_ms * 2 : 100;
    if (keeper.back_off_ms > 5000)
        keeper.back_off_ms = 5000;
}

static void start_supervisor(void)
{
    struct timeval patience = {.tv_sec = 5};
    int pair[2];
    pid_t pid;

    keeper.restart_ms = 0;
    keeper.started_ms = now_ms();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        complain("socketpair", errno);
        plan_restart();
        return;
    }
    /* A supervisor that does not read must not stop the keeper for good. */
    setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    pid = fork();
    if (pid == 0)
        run_supervisor(pair[1]);
    close(pair[1]);
    if (pid < 0) {
        complain("fork", errno);
        close(pair[0]);
        plan_restart();
        return;
    }
    keeper.socket = pair[0];
    keeper.supervisor = pid;
}

/* What it had sent before it died counts: descriptors may be in those messages. */
static void supervisor_ended(void)
{
    if (keeper.socket >= 0) {
        read_messages();
        close(keeper.socket);
    }
    if (keeper.pidfd >= 0)
        close(keeper.pidfd);
    keeper.socket = -1;
    keeper.pidfd = -1;
    keeper.supervisor = 0;
    if (!keeper.exit_ms)
        plan_restart();
}

static void reap(void)
{
    for (;;) {
        char text[64];
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);

        if (pid <= 0)
            return;
        if (pid == keeper.supervisor) {
            if (!keeper.exit_ms)
                dprintf(STDERR_FILENO, "coven-keeper: the supervisor ended with %s %d; starting another\n",
                        WIFSIGNALED(status) ? "signal" : "status",
                        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
            supervisor_ended();
        } else if (keeper.socket >= 0) {
            snprintf(text, sizeof(text), "reaped %d %d", pid, status);
            send_message(text, NULL, 0, MSG_DONTWAIT); /* worth nothing more than an exit reason */
        }
    }
}

/* ---- the end ----------------------------------------------------------------------------------- */

/* Whatever is left below the keeper goes with it. Killing parents brings their children here. */
static void kill_children(void)
{
    for (int round = 0; round < 1000; round++) {
        FILE *children;
        int pid;

        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD)
            return;
        children = fopen("/proc/thread-self/children", "re");
        if (!children)
            return;
        while (fscanf(children, "%d", &pid) == 1)
            kill(pid, SIGKILL);
        fclose(children);
        if (waitpid(-1, NULL, 0) < 0 && errno == ECHILD)
            return;
    }
}

static void take_signals(int signals)
{
    struct signalfd_siginfo info;

    while (read(signals, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo != SIGTERM && info.ssi_signo != SIGINT)
            continue;
        if (keeper.supervisor)
            kill(keeper.supervisor, SIGTERM); /* it ends everything in order and then sends `exit` */
        keeper.exit_ms = now_ms() + EXIT_MS;
    }
    reap();
}

static int next_timeout(void)
{
    int64_t due = keeper.exit_ms ? keeper.exit_ms : keeper.restart_ms;
    int64_t left = due - now_ms();

    if (!due)
        return -1;
    return left < 0 ? 0 : (int)left;
}

static int watch(int signals)
{
    for (;;) {
        struct pollfd polled[3] = {{.fd = signals, .events = POLLIN},
                                   {.fd = keeper.socket, .events = POLLIN},
                                   {.fd = keeper.pidfd, .events = POLLIN}};

        if (poll(polled, 3, next_timeout()) < 0 && errno != EINTR) {
            complain("poll", errno);
            return 1;
        }
        if (polled[1].revents && keeper.socket >= 0 && !read_messages()) {
            close(keeper.socket); /* its death is told by SIGCHLD or the pidfd */
            keeper.socket = -1;
        }
        if (polled[2].revents)
            supervisor_ended();
        take_signals(signals);
        if (keeper.exit_ms && (!keeper.supervisor || now_ms() >= keeper.exit_ms)) {
            if (keeper.supervisor)
                kill(keeper.supervisor, SIGKILL);
            return 0;
        }
        if (!keeper.exit_ms && keeper.restart_ms && now_ms() >= keeper.restart_ms)
            start_supervisor();
    }
}

static int join(const char *pid_text, const char *fd_text)
{
    keeper.supervisor = (pid_t)strtol(pid_text, NULL, 10);
    keeper.socket = (int)strtol(fd_text, NULL, 10);
    keeper.started_ms = now_ms();
    if (keeper.supervisor < 2 || keeper.socket < 3 || fcntl(keeper.socket, F_SETFD, FD_CLOEXEC) < 0)
        return -1;
    keeper.pidfd = (int)syscall(SYS_pidfd_open, keeper.supervisor, 0);
    if (keeper.pidfd < 0 && errno == ESRCH) {
        supervisor_ended(); /* dead already: what it had handed over is in the socket */
        return 0;
    }
    return keeper.pidfd < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
    struct rlimit files;
    sigset_t handled;
    int signals, result;

    if (argc > 6 && !strcmp(argv[1], "--supervisor") && !strcmp(argv[3], "--fd") && !strcmp(argv[5], "--")) {
        keeper.argv = argv + 6;
        if (join(argv[2], argv[4]) < 0) {
            complain("joining the supervisor", errno);
            return 2;
        }
    } else if (argc > 2 && !strcmp(argv[1], "--")) {
        keeper.argv = argv + 2;
    } else {
        dprintf(STDERR_FILENO, "usage: coven-keeper [--supervisor PID --fd N] -- PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigaddset(&handled, SIGTERM);
    sigaddset(&handled, SIGINT);
    sigaddset(&handled, SIGHUP);
    sigprocmask(SIG_BLOCK, &handled, NULL);
    signal(SIGPIPE, SIG_IGN);
    signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0) {
        complain("signalfd", errno);
        return 1;
    }
    if (!keeper.supervisor && !keeper.exit_ms)
        start_supervisor();
    result = watch(signals);
    kill_children();
    return result;
}
