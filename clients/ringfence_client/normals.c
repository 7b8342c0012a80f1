/* Box and Muller's transform, compiled: the same normals from the same words as TorchBoxMuller in normals.py, to within
 * 2^-49 of a pair's radius. No state, no threads, no input or output, and no randomness: the words are given.
 *
 * Written number by number, for the compiler to do several at once: no branch and no table, so that which memory
 * is touched does not depend on a number. Whole blocks only, so that a pair's normals do not depend on where in a call it stands.
 */

#include <math.h>
#include <string.h>

#include "instruction_sets.h"

#define BLOCK 64 /* pairs at once: a loop's length that the compiler knows */

INLINE double as_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint64_t as_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* (double)word, rounded once: AVX2 has no instruction for it. The halves are made exact doubles, 2^84 + 2^63 and 2^52 too
 * large, by writing them into the low bits of those numbers. */
INLINE double from_word(uint64_t word) {
    const double high = as_double((word >> 32) ^ 0x4530000080000000u);
    const double low = as_double((word & 0xffffffffu) | 0x4330000000000000u);
    return (high - 0x1.00000801p84) + low;
}

/* -2 log(u) for u from 0 to 1. With u = 2^k (1 + f), 1 + f from sqrt(1/2) to sqrt(2), and s = f / (2 + f):
 * log(1 + f) = 2 atanh(s) = f - f^2/2 + s (f^2/2 + R(s^2)), where R(z) is z times a polynomial. The polynomial was fitted
 * for the least relative error of 2 atanh(s), 2^-59.3 with these coefficients. log(2) is split so that k times its upper
 * part is exact. */
INLINE double minus_twice_log(double u) {
    const uint64_t least = 0x3fe6a09e00000000u; /* the bits of sqrt(1/2), near enough */
    const uint64_t shifted = as_bits(u) + (0x3ff0000000000000u - least);
    const double k = as_double((shifted >> 52) | 0x4330000000000000u) - (0x1p52 + 1023);
    const double f = as_double((shifted & 0xfffffffffffffu) + least) - 1.0;
    const double s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
    double r = 0x1.2f02a795dca80p-3;
    r = r * z + 0x1.39a202b38b25dp-3;
    r = r * z + 0x1.74663c02a676dp-3;
    r = r * z + 0x1.c71c52180f63dp-3;
    r = r * z + 0x1.24924941de54cp-2;
    r = r * z + 0x1.999999997ff16p-2;
    r = r * z + 0x1.5555555555592p-1;
    const double log = k * 0x1.62e42fee00000p-1 - ((half - (s * (half + r * z) + k * 0x1.a39ef35793c76p-33)) - f);
    return -2.0 * log;
}

/* Turn a pair's words into its normals. |first| + 1/2, by 2^63, is a uniform; second is an angle, 2^64 to the full turn,
 * and is brought into an eighth of a turn around a quarter exactly, as whole numbers. The polynomials of sine and cosine
 * were fitted for the least relative error there: 2^-56.4 and 2^-59.7 with these coefficients. */
INLINE void transform(uint64_t first, uint64_t second, double stddev, double *one, double *other) {
    const double radius = stddev * sqrt(minus_twice_log((fabs(from_word(first)) + 0.5) * 0x1p-63));
    const uint64_t quarter = (second + (1ull << 61)) >> 62;
    const double x = from_word(second - (quarter << 62)) * 0x1.921fb54442d18p-62, y = x * x;
    double sine = 0x1.5d8fd17704d3ep-33;
    sine = sine * y - 0x1.ae5e5a8f35508p-26;
    sine = sine * y + 0x1.71de3567ccf2cp-19;
    sine = sine * y - 0x1.a01a019bfde0fp-13;
    sine = sine * y + 0x1.111111110f7cfp-7;
    sine = sine * y - 0x1.5555555555548p-3;
    sine = x + x * y * sine;
    double cosine = -0x1.8fa4a1a2791e0p-37;
    cosine = cosine * y + 0x1.1ee9d7c4f134fp-29;
    cosine = cosine * y - 0x1.27e4f7eade3a9p-22;
    cosine = cosine * y + 0x1.a01a019c8474ap-16;
    cosine = cosine * y - 0x1.6c16c16c14f93p-10;
    cosine = cosine * y + 0x1.555555555554bp-5;
    cosine = 1.0 - (0.5 * y - y * y * cosine);
    /* Quarter turns swap the two and change signs: (c, s), (-s, c), (-c, -s), (s, -c). */
    const uint64_t swap = -(quarter & 1), differ = (as_bits(sine) ^ as_bits(cosine)) & swap;
    *one = radius * as_double(as_bits(cosine) ^ differ ^ (((quarter + 1) & 2) << 62));
    *other = radius * as_double(as_bits(sine) ^ differ ^ ((quarter & 2) << 62));
}

INLINE void fill(double *pairs, int64_t count, double stddev) {
    uint64_t words[2 * BLOCK];
    double normals[2 * BLOCK];
    memset(words, 0, sizeof words);
    for (; count > 0; count -= BLOCK, pairs += 2 * BLOCK) {
        const size_t bytes = (count < BLOCK ? (size_t)count : BLOCK) * 2 * sizeof *pairs;
        memcpy(words, pairs, bytes);
        for (int i = 0; i < BLOCK; i++)
            transform(words[2 * i], words[2 * i + 1], stddev, normals + 2 * i, normals + 2 * i + 1);
        memcpy(pairs, normals, bytes);
    }
}

#if defined(__x86_64__)
AVX512 static void fill_avx512(double *pairs, int64_t count, double stddev) { fill(pairs, count, stddev); }
AVX2 static void fill_avx2(double *pairs, int64_t count, double stddev) { fill(pairs, count, stddev); }
#endif

/* Turn `count` pairs of keystream words into as many pairs of normals, where they lie, with the widest registers that
 * this processor has, `most_lanes` floats at most. */
void ringfence_normals(double *pairs, int64_t count, double stddev, int64_t most_lanes) {
#if defined(__x86_64__)
    const int64_t lanes = widest_lanes(most_lanes);
    if (lanes == 16)
        fill_avx512(pairs, count, stddev);
    else if (lanes == 8)
        fill_avx2(pairs, count, stddev);
    else
#endif
        fill(pairs, count, stddev);
}
