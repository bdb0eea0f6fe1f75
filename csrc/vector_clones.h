// PSSSR_VECTOR_CLONES, before a function, compiles it once for every width of vector that x86-64
// has; the loader picks the widest that the processor at hand knows. One build then serves all.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define PSSSR_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define PSSSR_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#else
#define PSSSR_VECTOR_CLONES
#endif
