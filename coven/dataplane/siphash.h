/* SPDX-License-Identifier: Apache-2.0 */
/* SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", section 2.4 for the rounds), word by word:
 * begin, any number of words, end. */
#ifndef COVEN_SIPHASH_H
#define COVEN_SIPHASH_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t rotate(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static inline void sip_begin(const uint64_t seed[2], uint64_t v[4])
{
    v[0] = seed[0] ^ 0x736f6d6570736575ull;
    v[1] = seed[1] ^ 0x646f72616e646f6dull;
    v[2] = seed[0] ^ 0x6c7967656e657261ull;
    v[3] = seed[1] ^ 0x7465646279746573ull;
}

static inline void sip_word(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
}

static inline uint64_t sip_end(uint64_t v[4], uint64_t last)
{
    sip_word(v, last);
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static inline uint64_t load_word(const void *at)
{
    uint64_t word;

    memcpy(&word, at, sizeof(word));
    return le64toh(word);
}

#endif
