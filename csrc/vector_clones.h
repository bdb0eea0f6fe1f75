// One build serves every x86-64 processor: functions are compiled for several of them, and the
// loader picks the version with the widest vectors that the processor at hand knows.
//
// PSSSR_VECTOR_CLONES, before a function, has the compiler make the versions, of plain loops.
// Where PSSSR_TARGETS is defined, overloads that differ in nothing but PSSSR_AVX512, PSSSR_AVX2
// and PSSSR_BASELINE are such versions written by hand; elsewhere there is only the last, which
// a build with PSSSR_ONE_VERSION shows.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(PSSSR_ONE_VERSION)
#define PSSSR_TARGETS
#define PSSSR_AVX512 __attribute__((target("avx512f,fma")))
#define PSSSR_AVX2 __attribute__((target("avx2,fma")))
#define PSSSR_BASELINE __attribute__((target("default")))
#if __GNUC__ >= 12
#define PSSSR_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define PSSSR_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#else
#define PSSSR_BASELINE
#define PSSSR_VECTOR_CLONES
#endif

// PSSSR_CONTRACT, before a function, lets a product and the sum it enters be rounded once, which
// the flags of the build forbid for the sake of functions that must give PyTorch's bits.
#if defined(__GNUC__) && !defined(__clang__)
#define PSSSR_CONTRACT __attribute__((optimize("fp-contract=fast")))
#else
#define PSSSR_CONTRACT
#endif
