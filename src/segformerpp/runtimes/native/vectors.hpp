// What the kernels share: vectors of 16 numbers, kept in f32 or, two to a unit, in bf16. Where they
// are only multiplied they may be bytes, four to a unit.

#pragma once

#include <immintrin.h>

#include "kernels.hpp"

inline __mmask16 first(std::size_t count) {
    return count < LANES ? (__mmask16)((1u << count) - 1) : (__mmask16)0xffff;
}

// 16 numbers, from `16 / PER` units.
template <int PER>
inline __m512 load(const Unit* from, __mmask16 mask = 0xffff) {
    if constexpr (PER == 1) return _mm512_maskz_loadu_ps(mask, from);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

template <int PER>
inline void store(Unit* to, __m512 x, __mmask16 mask = 0xffff) {
#ifdef __AVX512BF16__
    if constexpr (PER == 2) {
        _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
        return;
    }
#endif
    _mm512_mask_storeu_ps(to, mask, x);
}

// A unit times those of a vector, added up.
template <int PER>
inline __m512 multiplied(__m512 sum, Unit scalar, __m512i units) {
#ifdef __AVX512BF16__
    if constexpr (PER == 2)
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)scalar), (__m512bh)units);
#endif
    return _mm512_fmadd_ps(
        _mm512_castsi512_ps(_mm512_set1_epi32((int)scalar)), _mm512_castsi512_ps(units), sum);
}

#ifdef __AVX512BF16__
// The same of bytes, of which those of the vector have a sign; PER is 4.
template <int PER>
inline __v16si multiplied(__v16si sum, Unit scalar, __m512i units) {
    return (__v16si)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32((int)scalar), units);
}
#endif
