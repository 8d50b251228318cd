/* SPDX-License-Identifier: Apache-2.0 */
/* Components that break the rules of their rings: counted by kind, told to the supervisor at most once a second each. */
#ifndef COVEN_VIOLATION_H
#define COVEN_VIOLATION_H

#include "worker.h"

#define COVEN_VIOLATION_TELL_NS 1000000000ull

/* Count `n` violations of a component. The caller has made room for one counter in the intent; the counts by kind are
 * no part of the accounting and not in it. teller: of
 * the replica, or of the component when it is fused or no single replica is to blame. */
void coven_violation(struct coven_worker *worker, struct coven_violation_count *teller, uint32_t component,
                     uint32_t replica, enum coven_violation kind, uint64_t n);

#endif
