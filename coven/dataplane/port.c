/* SPDX-License-Identifier: Apache-2.0 */
#include "port.h"

const struct coven_port_ops *coven_port_ops_of(uint32_t tool)
{
    switch (tool) {
    case COVEN_PORT_AFPACKET:
        return &coven_port_afpacket;
    case COVEN_PORT_PCAP:
        return &coven_port_pcap;
    case COVEN_PORT_TAP:
        return &coven_port_tap;
    case COVEN_PORT_GEN:
        return &coven_port_gen;
    case COVEN_PORT_AFXDP:
        return &coven_port_afxdp;
    }
    return NULL;
}
