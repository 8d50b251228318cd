/* SPDX-License-Identifier: Apache-2.0 */
/* Drop reasons as numbers, generated from the one list. */
#ifndef COVEN_DROP_REASONS_H
#define COVEN_DROP_REASONS_H

#include <coven/abi.h>

#define DROP(name, label, what, hint) COVEN_DROP_##name,
enum coven_drop_reason {
#include "drop_reasons.def"
    COVEN_DROP_REASONS
};
#undef DROP

_Static_assert(COVEN_DROP_REASONS <= COVEN_MAX_REASONS, "a reason has a counter in each scope");

#endif
