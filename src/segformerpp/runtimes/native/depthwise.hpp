// The 3x3 depthwise convolution of a Mix-FFN and the GELU behind it, in one pass.

#pragma once

#include <cmath>
#include <algorithm>
#include <cstddef>
#include <vector>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "vectors.hpp"

namespace depthwise {

constexpr int COLUMNS = 4;  // of the image, worked on together
constexpr int PIECES = 16;  // of the curve
constexpr double END = 6;   // where it ends

// gelu(x) = max(x, 0) - g(|x|) with g(a) = a (1 - Phi(a)), which is zero from `END` on: in every
// piece a polynomial through g at Chebyshev's points, 1.3e-8 (f32) and 1e-5 (bf16) off at most.
template <int PER>
struct Gelu {
    static constexpr int TERMS = PER == 1 ? 6 : 4;
    alignas(64) float table[TERMS][PIECES];

    Gelu() {
        for (int piece = 0; piece < PIECES; piece++) {
            // Newton's divided differences, then powers of what is left of a piece.
            double points[TERMS], differences[TERMS], powers[TERMS] = {};
            for (int i = 0; i < TERMS; i++) {
                points[i] = .5 - .5 * std::cos(M_PI * (i + .5) / TERMS);
                const double a = (piece + points[i]) * END / PIECES;
                differences[i] = a * .5 * std::erfc(a * M_SQRT1_2);
            }
            for (int i = 1; i < TERMS; i++)
                for (int j = TERMS - 1; j >= i; j--)
                    differences[j] =
                        (differences[j] - differences[j - 1]) / (points[j] - points[j - i]);
            for (int i = TERMS - 1; i >= 0; i--) {
                for (int j = TERMS - 1; j > 0; j--)
                    powers[j] = powers[j - 1] - points[i] * powers[j];
                powers[0] = differences[i] - points[i] * powers[0];
            }
            for (int i = 0; i < TERMS; i++) table[i][piece] = (float)powers[i];
        }
    }

    inline __m512 operator()(__m512 x) const {
        const __m512 last = _mm512_set1_ps(PIECES - 1e-6f * PIECES);
        const __m512 scaled = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(PIECES / END));
        const __m512 a = _mm512_min_ps(last, scaled);
        const __m512i piece = _mm512_cvttps_epi32(a);
        const __m512 rest = _mm512_reduce_ps(a, 0x09);  // a - floor(a)
        __m512 y = _mm512_permutexvar_ps(piece, _mm512_load_ps(table[TERMS - 1]));
#pragma GCC unroll 6
        for (int i = TERMS - 2; i >= 0; i--)
            y = _mm512_fmadd_ps(y, rest, _mm512_permutexvar_ps(piece, _mm512_load_ps(table[i])));
        return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), y);
    }
};

template <int PER>
void compute(const Shape& s, const Unit* in, const float* weight, const float* bias, Unit* out) {
    static const Gelu<PER> gelu;
    const std::size_t pixel = s.channels / PER, row = s.width * pixel;
    const std::size_t height = s.height + s.above + s.below - 2;
    const std::vector<Unit> zeros(pixel);
    const auto work = [&](const tbb::blocked_range<std::size_t>& range) {
        for (std::size_t i = range.begin(); i < range.end(); i++) {
            const std::size_t y = i % height;
            const Unit* image = in + i / height * s.height * row;
            for (std::size_t x = 0; x < s.width; x += COLUMNS) {
                const Unit* from[3][COLUMNS + 2];
                for (int j = 0; j < 3; j++)
                    for (int k = 0; k < COLUMNS + 2; k++) {
                        const std::size_t v = y + j - s.above, u = x + k - 1;  // may wrap
                        from[j][k] = v < s.height && u < s.width ? image + v * row + u * pixel
                                                                 : zeros.data();
                    }
                const std::size_t columns = std::min<std::size_t>(COLUMNS, s.width - x);
                Unit* to = out + i * row + x * pixel;
                for (std::size_t c = 0; c < s.channels; c += LANES) {
                    __m512 sums[COLUMNS];
#pragma GCC unroll 4
                    for (int k = 0; k < COLUMNS; k++) sums[k] = _mm512_loadu_ps(bias + c);
#pragma GCC unroll 3
                    for (int j = 0; j < 3; j++) {
                        __m512 values[COLUMNS + 2];
#pragma GCC unroll 6
                        for (int k = 0; k < COLUMNS + 2; k++)
                            values[k] = load<PER>(from[j][k] + c / PER);
#pragma GCC unroll 3
                        for (int l = 0; l < 3; l++) {
                            const __m512 w = _mm512_loadu_ps(weight + (j * 3 + l) * s.channels + c);
#pragma GCC unroll 4
                            for (int k = 0; k < COLUMNS; k++)
                                sums[k] = _mm512_fmadd_ps(values[k + l], w, sums[k]);
                        }
                    }
#pragma GCC unroll 4
                    for (std::size_t k = 0; k < COLUMNS; k++) {
                        const __m512 result = gelu(sums[k]);
                        if (k < columns) store<PER>(to + k * pixel + c / PER, result);
                    }
                }
            }
        }
    };
    tbb::parallel_for(tbb::blocked_range<std::size_t>(0, s.batch * height), work);
}

}  // namespace depthwise
