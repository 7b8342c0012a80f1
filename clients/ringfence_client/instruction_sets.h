/* The instruction sets that compiled code is made for, and which of them this processor has. */

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define AVX2 __attribute__((target("avx2,fma")))
#endif

/* Floats in the widest vector register to use, `most` at most: 16 (AVX-512), 8 (AVX2) or 4, which every machine does. */
INLINE int64_t widest_lanes(int64_t most) {
#if defined(__x86_64__)
    if (most >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 16;
    if (most >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 8;
#endif
    return 4;
}
