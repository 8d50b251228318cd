/* SPDX-License-Identifier: Apache-2.0 */
/* Checksums that a sender on the same machine left for its NIC to complete, found out from the packet alone. */
#ifndef COVEN_PARTIAL_H
#define COVEN_PARTIAL_H

#include <stdint.h>

/* Complete the checksum of a TCP, UDP or SCTP packet if it holds what Linux leaves there for the hardware. */
void coven_partial_complete(uint8_t *data, uint32_t length);

#endif
