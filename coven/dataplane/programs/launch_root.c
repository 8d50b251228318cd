/* SPDX-License-Identifier: Apache-2.0 */
/* The private root of coven-launch: a tmpfs with copies of the mounts that the process may see, nothing else. */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_LINKS 8

static const char *const system_folders[] = {"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc"};
static const char *const devices[] = {"/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"};

/* Open a place of the private root as the process will see it: links in it, absolute ones too, lead to places in it,
 * never to the host's. */
static int open_inside(int stage, const char *path, uint64_t flags)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};

    return (int)syscall(SYS_openat2, stage, path, &how, sizeof(how));
}

static int open_parent(int stage, const char *path, const char **name, unsigned depth);

/* A link that leads to what is not there yet: make that. in: the path of the folder that the link is in. */
static void make_target(int stage, int folder, const char *in, const char *link, unsigned depth)
{
    char target[512], path[4096];
    const char *unused;
    ssize_t n = readlinkat(folder, link, target, sizeof(target));
    int written;

    if (n < 0 || (size_t)n == sizeof(target) || depth == MAX_LINKS)
        launch_die(n < 0 ? errno : ELOOP, "private root: %s/%s", in, link);
    written = snprintf(path, sizeof(path), "%s/%.*s/", target[0] == '/' ? "" : in, (int)n, target);
    if (written < 0 || (size_t)written >= sizeof(path))
        launch_die(ENAMETOOLONG, "private root: %s/%s", in, link);
    close(open_parent(stage, path, &unused, depth + 1));
}

/* Give the folder that `path` lies in, made as far as it is not there; *name becomes the last part of the path. depth:
 * links that led here. */
static int open_parent(int stage, const char *path, const char **name, unsigned depth)
{
    char prefix[4096];
    int folder = open_inside(stage, "/", O_PATH | O_DIRECTORY);
    const char *begin = path + 1;

    for (const char *slash = strchr(begin, '/'); slash; begin = slash + 1, slash = strchr(begin, '/')) {
        char part[256];
        int next;

        if (slash == begin) /* two slashes */
            continue;
        if ((size_t)(slash - path) >= sizeof(prefix) || (size_t)(slash - begin) >= sizeof(part))
            launch_die(ENAMETOOLONG, "private root: %s", path);
        snprintf(prefix, sizeof(prefix), "%.*s", (int)(slash - path), path);
        snprintf(part, sizeof(part), "%.*s", (int)(slash - begin), begin);
        next = open_inside(stage, prefix, O_PATH | O_DIRECTORY);
        if (next < 0 && errno == ENOENT) {
            if (mkdirat(folder, part, 0755) < 0 && errno == EEXIST) {
                snprintf(prefix, sizeof(prefix), "%.*s", (int)(begin - 1 - path), path);
                make_target(stage, folder, prefix, part, depth);
                snprintf(prefix, sizeof(prefix), "%.*s", (int)(slash - path), path);
            }
            next = open_inside(stage, prefix, O_PATH | O_DIRECTORY);
        }
        if (next < 0)
            launch_die(errno, "private root: %s", prefix);
        close(folder);
        folder = next;
    }
    *name = begin;
    return folder;
}

/* Take a copy of the mount at bind->path while the old root is still there. */
static void copy_tree(struct bind *bind)
{
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NOSUID};
    struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC};
    struct stat status;
    int place;

    if (bind->exact)
        how.resolve = RESOLVE_NO_SYMLINKS;
    place = (int)syscall(SYS_openat2, AT_FDCWD, bind->path, &how, sizeof(how));
    if (place < 0 || fstat(place, &status) < 0)
        launch_die(errno, "--bind%s %s", bind->exact ? "-exact" : bind->writable ? "" : "-ro", bind->path);
    if (bind->exact && S_ISLNK(status.st_mode))
        launch_die(ELOOP, "--bind-exact %s", bind->path);
    if (S_ISLNK(status.st_mode)) {
        ssize_t n = readlinkat(place, "", bind->link, sizeof(bind->link));

        if (n < 0 || (size_t)n == sizeof(bind->link)) /* all of it used: it was cut short */
            launch_die(n < 0 ? errno : ENAMETOOLONG, "%s", bind->path);
        bind->link[n] = 0;
        close(place);
        return;
    }
    bind->folder = S_ISDIR(status.st_mode);
    bind->tree = open_tree(place, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (bind->tree < 0)
        launch_die(errno, "open_tree %s", bind->path);
    close(place);
    if (!bind->writable)
        attributes.attr_set |= MOUNT_ATTR_RDONLY;
    if (bind->folder)
        attributes.attr_set |= MOUNT_ATTR_NODEV;
    if (mount_setattr(bind->tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof(attributes)) < 0)
        launch_die(errno, "mount_setattr %s", bind->path);
}

/* Put the copy at its path in the private root. */
static void attach_tree(int stage, const struct bind *bind)
{
    const char *name;
    int parent = open_parent(stage, bind->path, &name, 0), place;

    if (bind->tree < 0) {
        if (symlinkat(bind->link, parent, name) < 0 && errno != EEXIST)
            launch_die(errno, "private root: link %s", bind->path);
        close(parent);
        return;
    }
    place = open_inside(stage, bind->path, O_PATH);
    if (place < 0 && errno == ENOENT) {
        int made =
            bind->folder ? mkdirat(parent, name, 0755) : openat(parent, name, O_CREAT | O_EXCL | O_CLOEXEC, 0644);

        if (made > 0)
            close(made);
        place = made < 0 ? -1 : open_inside(stage, bind->path, O_PATH);
    }
    if (place < 0)
        launch_die(errno, "private root: %s", bind->path);
    if (move_mount(bind->tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        launch_die(errno, "move_mount %s", bind->path);
    close(place);
    close(parent);
    close(bind->tree);
}

/* Nothing mounted from here on may show outside. "/" of a chroot need not be a mount point; then go to the
 * root of the (own, new) mount namespace first, which setns does to the process. */
static void make_private(void)
{
    int namespace;

    if (!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return;
    if (errno != EINVAL)
        launch_die(errno, "making mounts private");
    namespace = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (namespace < 0)
        launch_die(errno, "/proc/self/ns/mnt (is /proc mounted here?)");
    if (setns(namespace, CLONE_NEWNS) < 0)
        launch_die(errno, "returning to the root of the mount namespace");
    close(namespace);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        launch_die(errno, "making mounts private");
}

static const char *mount_stage(void)
{
    static const char *const places[] = {"/tmp", "/run", "/mnt", "/var"};

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
        if (!mount("coven", places[i], "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m"))
            return places[i];
    launch_die(errno, "mounting a private root on /tmp, /run, /mnt or /var");
}

/* Only root may mount a /proc that shows the host's processes; others get the host's own, read only. */
static bool proc_is_ours(void)
{
    return geteuid() == 0;
}

static void mount_proc_and_tmp(const char *stage, bool proc_all)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/proc", stage);
    if (mkdir(path, 0755) < 0)
        launch_die(errno, "private root: /proc");
    if (proc_is_ours() &&
        mount("proc", path, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, proc_all ? NULL : "hidepid=2") < 0)
        launch_die(errno, "private root: mounting /proc");
    snprintf(path, sizeof(path), "%s/tmp", stage);
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        launch_die(errno, "private root: /tmp");
    if (mount("tmp", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=16m,nr_inodes=1024") < 0)
        launch_die(errno, "private root: mounting /tmp");
}

static void enter_root(const char *stage)
{
    struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};

    if (mount_setattr(AT_FDCWD, stage, 0, &read_only, sizeof(read_only)) < 0)
        launch_die(errno, "private root: making it read only");
    if (chdir(stage) < 0)
        launch_die(errno, "private root: %s", stage);
    /* pivot_root lets go of the host's mounts; where "/" is the initial ramdisk it is not possible. */
    if (!syscall(SYS_pivot_root, ".", ".")) {
        if (umount2(".", MNT_DETACH) < 0)
            launch_die(errno, "private root: leaving the old one");
    } else if (chroot(".") < 0) {
        launch_die(errno, "chroot");
    }
    if (chdir("/") < 0)
        launch_die(errno, "private root: /");
}

void launch_build_root(struct bind *binds, unsigned n_binds, bool proc_all)
{
    struct bind system[sizeof(system_folders) / sizeof(system_folders[0]) + sizeof(devices) / sizeof(devices[0]) + 1];
    unsigned n_system = 0;
    const char *stage;
    int inside;

    if (unshare(CLONE_NEWNS) < 0) {
        launch_need(-1, "--root: a mount namespace", NULL);
        return;
    }
    for (size_t i = 0; i < sizeof(system_folders) / sizeof(system_folders[0]); i++)
        if (!access(system_folders[i], F_OK))
            system[n_system++] = (struct bind){.path = system_folders[i], .tree = -1};
    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
        system[n_system++] = (struct bind){.path = devices[i], .writable = true, .tree = -1};
    if (!proc_is_ours())
        system[n_system++] = (struct bind){.path = "/proc", .tree = -1};
    for (unsigned i = 0; i < n_system; i++)
        copy_tree(&system[i]);
    for (unsigned i = 0; i < n_binds; i++)
        copy_tree(&binds[i]);
    make_private();
    stage = mount_stage();
    mount_proc_and_tmp(stage, proc_all);
    inside = open(stage, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (inside < 0)
        launch_die(errno, "private root: %s", stage);
    for (unsigned i = 0; i < n_system; i++)
        attach_tree(inside, &system[i]);
    for (unsigned i = 0; i < n_binds; i++)
        attach_tree(inside, &binds[i]);
    close(inside);
    enter_root(stage);
}
