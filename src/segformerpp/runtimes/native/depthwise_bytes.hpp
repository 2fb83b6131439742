// The same as `depthwise` in bytes: quantised images and weights, and quantised results. For
// `kernels.cpp` alone.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "vectors.hpp"

#ifdef __AVX512BF16__
namespace depthwise_bytes {

constexpr int VECTORS = GROUP / LANES;  // how channels lie there: see `interleave`

// gelu(x) = max(x, 0) - g(|x|) with g(a) = a (1 - Phi(a)), which is about zero from `END` on and
// between its values at `PIECES` places linear, 4e-4 off at most; of whole numbers, to bytes.
class Gelu {
public:
    explicit Gelu(const Result& result) : m_bits(result.bits()) {
        const double unit = result.step / (1 << m_bits), reach = END / unit;
        const int bits = (int)std::log2(reach);
        alignas(64) std::int16_t values[PIECES], slopes[PIECES];
        const auto value = [&](int i) {
            const double a = i * END / PIECES;
            return (int)std::lround(a * .5 * std::erfc(a * M_SQRT1_2) / unit);
        };
        for (int i = 0; i < PIECES; i++) {
            values[i] = value(i);
            slopes[i] = value(i + 1) - value(i);
        }
        for (int i = 0; i < 2; i++) {
            m_values[i] = _mm512_load_si512(values + 32 * i);
            m_slopes[i] = _mm512_load_si512(slopes + 32 * i);
        }
        m_reach = _mm512_set1_epi16((std::int16_t)(reach - 1));
        const double factor = std::min(65535., 65536 * std::exp2(bits) / reach);
        m_factor = _mm512_set1_epi16((std::int16_t)(int)factor);
        m_piece = _mm_cvtsi32_si128(bits - 6);
        m_rest = _mm_cvtsi32_si128(15 - (bits - 6));
        m_shift = _mm_cvtsi32_si128(m_bits);
        m_zero = _mm512_set1_epi16((result.zero << m_bits) + (1 << m_bits >> 1));
    }

    int bits() const { return m_bits; }

    // Whole numbers, of which 2^bits are a step -> steps, from `zero` on.
    inline __m512i operator()(__m512i x) const {
        const __m512i a = _mm512_min_epu16(_mm512_abs_epi16(x), m_reach);
        const __m512i scaled = _mm512_mulhi_epu16(a, m_factor);
        const __m512i piece = _mm512_srl_epi16(scaled, m_piece);
        const __m512i rest = _mm512_and_si512(_mm512_sll_epi16(scaled, m_rest),
                                              _mm512_set1_epi16(32767));
        const __m512i value = _mm512_permutex2var_epi16(m_values[0], piece, m_values[1]);
        const __m512i slope = _mm512_permutex2var_epi16(m_slopes[0], piece, m_slopes[1]);
        const __m512i g = _mm512_add_epi16(value, _mm512_mulhrs_epi16(slope, rest));
        const __m512i y = _mm512_sub_epi16(_mm512_max_epi16(x, _mm512_setzero_si512()), g);
        return _mm512_sra_epi16(_mm512_adds_epi16(y, m_zero), m_shift);
    }

private:
    int m_bits;
    __m512i m_values[2], m_slopes[2], m_reach, m_factor, m_zero;
    __m128i m_piece, m_rest, m_shift;
};

// `GROUP` channels of four rows: of each channel the four bytes together.
inline void interleave(const __m512i rows[4], __m512i to[VECTORS]) {
    const __m512i a = _mm512_unpacklo_epi8(rows[0], rows[1]);
    const __m512i b = _mm512_unpackhi_epi8(rows[0], rows[1]);
    const __m512i c = _mm512_unpacklo_epi8(rows[2], rows[3]);
    const __m512i d = _mm512_unpackhi_epi8(rows[2], rows[3]);
    to[0] = _mm512_unpacklo_epi16(a, c);
    to[1] = _mm512_unpackhi_epi16(a, c);
    to[2] = _mm512_unpacklo_epi16(b, d);
    to[3] = _mm512_unpackhi_epi16(b, d);
}

// The weights of some channels, and what is left and right of the image.
struct alignas(64) Group {
    __m512i taps[2][3][VECTORS];  // [row of the result][column]: of four rows
    __m512i outside[VECTORS];
    __m512 factor[VECTORS], bias[VECTORS];

    Group(const std::int8_t* weight, const float* factors, const float* biases,
          const std::uint8_t* zeros, std::size_t channels, std::size_t first, float per_step) {
        __m512i rows[4];
        for (auto& row : rows) row = _mm512_loadu_si512(zeros + first);
        interleave(rows, outside);
        for (int k = 0; k < 3; k++)
            for (int below = 0; below < 2; below++) {
                for (int j = 0; j < 4; j++) {
                    const int row = j - below;
                    rows[j] = _mm512_setzero_si512();
                    if (row >= 0 && row < 3)
                        rows[j] = _mm512_loadu_si512(weight + (row * 3 + k) * channels + first);
                }
                interleave(rows, taps[below][k]);
            }
        for (int i = 0; i < VECTORS; i++) {
            alignas(64) float f[LANES], b[LANES];
            for (int l = 0; l < LANES; l++) {
                const std::size_t channel = first + l / 4 * 16 + i * 4 + l % 4;
                f[l] = factors[channel] * per_step;
                b[l] = biases[channel] * per_step;
            }
            factor[i] = _mm512_load_ps(f);
            bias[i] = _mm512_load_ps(b);
        }
    }
};

void compute(const Shape& s, const std::uint8_t* in, const std::int8_t* weight,
             const float* factor, const float* bias, const std::uint8_t* zeros,
             const Result& result, std::uint8_t* out) {
    if (!s.width) return;
    const Gelu gelu(result);
    std::vector<Group> groups;
    for (std::size_t c = 0; c < s.channels; c += GROUP)
        groups.emplace_back(weight, factor, bias, zeros, s.channels, c,
                            (float)((1 << gelu.bits()) / result.step));
    const std::size_t pairs = (s.height + 1) / 2, row = s.width * s.channels;
    const auto work = [&](const tbb::blocked_range<std::size_t>& range) {
        const Gelu curve = gelu;
        for (std::size_t i = range.begin(); i < range.end(); i++) {
            const std::size_t y = i % pairs * 2, start = i / pairs * s.height * row;
            for (std::size_t g = 0; g < groups.size(); g++) {
                const Group& group = groups[g];
                const std::uint8_t* from[4];
                std::size_t steps[4];
                for (int j = 0; j < 4; j++) {
                    const std::size_t v = y + j - 1;  // may wrap
                    const bool inside = v < s.height;
                    from[j] = (inside ? in + start + v * row : zeros) + g * GROUP;
                    steps[j] = inside ? s.channels : 0;
                }
                std::uint8_t* to = out + start + y * row + g * GROUP;
                const int count = y + 1 < s.height ? 2 : 1;
                __m512i columns[3][VECTORS];
                const auto read = [&](__m512i column[VECTORS]) {
                    __m512i rows[4];
#pragma GCC unroll 4
                    for (int j = 0; j < 4; j++) {
                        rows[j] = _mm512_loadu_si512(from[j]);
                        from[j] += steps[j];
                    }
                    interleave(rows, column);
                };
#pragma GCC unroll 4
                for (int l = 0; l < VECTORS; l++) columns[0][l] = group.outside[l];
                read(columns[1]);
                for (std::size_t x = 0; x < s.width; x++, to += s.channels) {
                    if (x + 1 < s.width)
                        read(columns[2]);
                    else
#pragma GCC unroll 4
                        for (int l = 0; l < VECTORS; l++) columns[2][l] = group.outside[l];
#pragma GCC unroll 2
                    for (int below = 0; below < 2; below++) {
                        if (below == count) break;
                        __m512i whole[VECTORS];
#pragma GCC unroll 4
                        for (int l = 0; l < VECTORS; l++) {
                            __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 3
                            for (int k = 0; k < 3; k++)
                                sum = _mm512_dpbusd_epi32(sum, columns[k][l],
                                                          group.taps[below][k][l]);
                            whole[l] = _mm512_cvtps_epi32(_mm512_fmadd_ps(
                                _mm512_cvtepi32_ps(sum), group.factor[l], group.bias[l]));
                        }
                        const __m512i low = curve(_mm512_packs_epi32(whole[0], whole[1]));
                        const __m512i high = curve(_mm512_packs_epi32(whole[2], whole[3]));
                        _mm512_storeu_si512(to + below * row, _mm512_packus_epi16(low, high));
                    }
#pragma GCC unroll 4
                    for (int l = 0; l < VECTORS; l++) {
                        columns[0][l] = columns[1][l];
                        columns[1][l] = columns[2][l];
                    }
                }
            }
        }
    };
    tbb::parallel_for(tbb::blocked_range<std::size_t>(0, s.batch * pairs), work);
}

}  // namespace depthwise_bytes
#endif
