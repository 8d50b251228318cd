/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static const char *const kind_names[] = {"?", "plan", "pool", "replica", "state", "ledger", "stats"};

static const char *kind_name(uint32_t kind)
{
    return kind < sizeof(kind_names) / sizeof(kind_names[0]) ? kind_names[kind] : "?";
}

/* The header is copied once and the copy judged: a component may write to its own segments meanwhile. */
static int check(const struct coven_segment *segment, uint32_t kind, char *why, size_t why_bytes)
{
    struct coven_segment_header header;

    memcpy(&header, segment->base, sizeof(header));
    if (header.magic != COVEN_MAGIC || header.kind != kind) {
        snprintf(why, why_bytes, "%s segment: wrong magic or kind (kind %u)", kind_name(kind), header.kind);
        return -EINVAL;
    }
    if (header.abi_version != COVEN_ABI_VERSION) {
        snprintf(why, why_bytes, "%s segment: ABI version %u, this program has %u", kind_name(kind), header.abi_version,
                 COVEN_ABI_VERSION);
        return -EPROTO;
    }
    if (header.bytes != segment->bytes) {
        snprintf(why, why_bytes, "%s segment: says %llu bytes, has %zu", kind_name(kind),
                 (unsigned long long)header.bytes, segment->bytes);
        return -EINVAL;
    }
    return 0;
}

/* Large ones where huge pages fit, should the kernel have them to give. */
static void *map(size_t bytes, int protection, int fd)
{
    char *room, *at;

    if (bytes < HUGE_PAGE)
        return mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
    room = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return MAP_FAILED;
    at = room + (HUGE_PAGE - (uintptr_t)room % HUGE_PAGE) % HUGE_PAGE;
    if (mmap(at, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        munmap(room, bytes + HUGE_PAGE);
        return MAP_FAILED;
    }
    if (at > room)
        munmap(room, (size_t)(at - room));
    bytes = (bytes + 4095) & ~(size_t)4095;
    munmap(at + bytes, (size_t)(room + HUGE_PAGE - at));
    return at;
}

void coven_segment_prefer_huge(const struct coven_segment *segment)
{
    /* a wish: without huge pages everything works, with more misses of the translation cache */
    if (segment->base && segment->bytes >= HUGE_PAGE)
        (void)!madvise(segment->base, segment->bytes, MADV_HUGEPAGE);
}

int coven_segment_map_unread(struct coven_segment *segment, int fd, uint32_t kind, size_t min_bytes, bool writable,
                             char *why, size_t why_bytes)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    int error;

    *segment = (struct coven_segment){0};
    /* The stats segment has a POSIX name and cannot be sealed: its mode keeps everybody else from resizing it. */
    if (kind != COVEN_SEGMENT_STATS && (seals < 0 || (seals & SEALS) != SEALS)) {
        snprintf(why, why_bytes, "%s segment: not a memfd sealed against shrink, grow and seal", kind_name(kind));
        return -EPERM;
    }
    if (fstat(fd, &status) < 0)
        return -errno;
    if (min_bytes < sizeof(struct coven_segment_header))
        min_bytes = sizeof(struct coven_segment_header);
    if ((uint64_t)status.st_size < min_bytes) {
        snprintf(why, why_bytes, "%s segment: %lld bytes, needs %zu", kind_name(kind), (long long)status.st_size,
                 min_bytes);
        return -EMSGSIZE;
    }
    segment->bytes = (size_t)status.st_size;
    segment->identity = (uint64_t)status.st_ino;
    segment->base = map(segment->bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, fd);
    if (segment->base == MAP_FAILED) {
        error = -errno;
        *segment = (struct coven_segment){0};
        snprintf(why, why_bytes, "%s segment: mmap: %s", kind_name(kind), strerror(-error));
        return error;
    }
    return 0;
}

int coven_segment_map(struct coven_segment *segment, int fd, uint32_t kind, size_t min_bytes, bool writable, char *why,
                      size_t why_bytes)
{
    int error = coven_segment_map_unread(segment, fd, kind, min_bytes, writable, why, why_bytes);

    if (error)
        return error;
    error = check(segment, kind, why, why_bytes);
    if (error)
        coven_segment_unmap(segment);
    return error;
}

void coven_segment_unmap(struct coven_segment *segment)
{
    if (segment->base)
        munmap(segment->base, segment->bytes);
    *segment = (struct coven_segment){0};
}
