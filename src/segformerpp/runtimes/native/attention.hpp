// Attention, which never holds more weights than those of a tile of queries for `BLOCK` keys
// (online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867).
//
// Vectors run over queries: softmax needs nothing across the lanes of a vector, and both products
// are the same loop. Weights are divided by their sum at the end; until then they are relative to a
// reference for each query, which is raised only where a logit exceeds it by `HEADROOM`.

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "vectors.hpp"

namespace attention {

constexpr int VECTORS = 3;             // of queries, in a tile
constexpr int TILE = LANES * VECTORS;  // queries in a tile
constexpr int BLOCK = 64;              // keys whose weights are kept; a multiple of ROWS
constexpr float HEADROOM = 20;         // powers of two
constexpr float NEVER = -1e30f;        // the logit of what fills up the last rows

using Tile = __m512[ROWS][VECTORS];
using WholeTile = __v16si[ROWS][VECTORS];

// 2^x; of it the exponent is exact, the rest a polynomial: 7.5e-8 off at most.
inline __m512 power(__m512 x) {
    const __m512 rest = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
    __m512 y = _mm512_set1_ps(1.877576673383137e-3f);
    const auto next = [&](float c) { y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(c)); };
    next(8.989340094679272e-3f);
    next(5.582631805006320e-2f);
    next(2.401536170453281e-1f);
    next(6.931530732000761e-1f);
    next(9.999999250635297e-1f);
    return _mm512_scalef_ps(y, x);
}

#ifdef __AVX512BF16__
// 2^(x - base) in bf16, 0.7 % off at most, for numbers of at most base + `HEADROOM`; 0 for those
// below base - 127, and for NaN. In steps of 1/128 a number is in fixed point what its power is in
// floating point, but for the fraction: that is looked up.
class Powers {
public:
    explicit Powers(__m512 base) {
        const __m512 zero = _mm512_sub_ps(_mm512_set1_ps(127), base);  // where the exponent is
        m_even = _mm512_mul_ps(zero, _mm512_set1_ps(128));
        m_odd = _mm512_fmadd_ps(m_even, _mm512_set1_ps(65536), _mm512_set1_ps(32768));
        for (int i = 0; i < 2; i++) m_fractions[i] = _mm512_load_si512(fractions().bytes + 64 * i);
    }

    // Of two vectors, as pairs.
    __m512i operator()(__m512 even, __m512 odd) const {
        const __m512 none = _mm512_setzero_ps();
        const __m512i high = _mm512_set1_epi32((int)0xffff0000), low = _mm512_set1_epi16(127);
        const __m512 a = _mm512_fmadd_ps(even, _mm512_set1_ps(128), m_even);
        const __m512 b = _mm512_fmadd_ps(odd, _mm512_set1_ps(128 * 65536), m_odd);
        const __m512i fixed = _mm512_ternarylogic_epi32(  // a | (b & high)
            _mm512_cvtps_epi32(_mm512_max_ps(a, none)), _mm512_cvtps_epi32(_mm512_max_ps(b, none)),
            high, 0xf8);
        const __m512i found = _mm512_permutex2var_epi8(m_fractions[0], fixed, m_fractions[1]);
        return _mm512_ternarylogic_epi32(low, found, fixed, 0xca);  // low ? found : fixed
    }

private:
    struct Fractions {
        alignas(64) unsigned char bytes[128];
        Fractions() {
            for (int i = 0; i < 128; i++) bytes[i] = std::lround(128 * (std::exp2(i / 128.) - 1));
        }
    };
    static const Fractions& fractions() {
        static const Fractions found;
        return found;
    }

    __m512 m_even, m_odd;
    __m512i m_fractions[2];
};
#endif

// sums[k][r] += narrow[n][k] * wide[n][r] over all n.
template <int PER, class Sums>
inline __attribute__((always_inline)) void multiply(
    Sums& sums, const Unit* narrow, const Unit* wide, std::size_t count) {
    for (std::size_t n = 0; n < count; n++, narrow += ROWS, wide += TILE) {
        __m512i units[VECTORS];
#pragma GCC unroll 3
        for (int r = 0; r < VECTORS; r++) units[r] = _mm512_load_si512(wide + r * LANES);
#pragma GCC unroll 8
        for (int k = 0; k < ROWS; k++)
#pragma GCC unroll 3
            for (int r = 0; r < VECTORS; r++)
                sums[k][r] = multiplied<PER>(sums[k][r], narrow[k], units[r]);
    }
}

// 16 rows of 16 units become 16 columns.
inline void transpose(__m512i rows[LANES]) {
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        const __m512i b = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(rows[i + 2], rows[i + 3]);
        const __m512i d = _mm512_unpackhi_epi32(rows[i + 2], rows[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        const __m512i a = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
        const __m512i d = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
        rows[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        rows[i + 4] = _mm512_shuffle_i32x4(c, d, 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
        rows[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

// A tile of queries, its weights, and what these sum up; `EACH` as `compute` has it.
template <int PER, int EACH>
struct State {
    alignas(64) Unit queries[MOST_CHANNELS / PER * TILE];  // [units][TILE]
    alignas(64) float weights[BLOCK * TILE];  // logits [keys][TILE], then Unit [keys / PER][TILE]
    alignas(64) float out[MOST_CHANNELS * TILE];  // [channels][TILE]
    __m512 sums[VECTORS], reference[VECTORS], top[VECTORS];
    __m512 scales[VECTORS];  // of queries in bytes

    // Keys [count / ROWS][channels / EACH][ROWS], values [channels / ROWS][count / PER][ROWS].
    void attend(const Unit* keys, const Unit* values, const float* logs, int count, int channels) {
        for (int r = 0; r < VECTORS; r++) {
            sums[r] = _mm512_setzero_ps();
            reference[r] = _mm512_set1_ps(NEVER);
        }
        std::fill(out, out + channels * TILE, 0.f);
        const int units = channels / EACH;
        for (int start = 0; start < count; start += BLOCK) {
            const int rows = std::min(BLOCK, count - start);
            fit(keys + (std::size_t)start * units, logs + start, rows, units);
            for (int r = 0; r < VECTORS; r++) exponentiate(r, rows, channels);
            for (int d = 0; d < channels; d += ROWS) {
                Tile sum;
#pragma GCC unroll 8
                for (int k = 0; k < ROWS; k++)
#pragma GCC unroll 3
                    for (int r = 0; r < VECTORS; r++)
                        sum[k][r] = _mm512_load_ps(out + (d + k) * TILE + r * LANES);
                const Unit* value = values + ((std::size_t)d * count + start * ROWS) / PER;
                multiply<PER>(sum, value, (const Unit*)weights, rows / PER);
#pragma GCC unroll 8
                for (int k = 0; k < ROWS; k++)
#pragma GCC unroll 3
                    for (int r = 0; r < VECTORS; r++)
                        _mm512_store_ps(out + (d + k) * TILE + r * LANES, sum[k][r]);
            }
        }
    }

    // Logits of some keys, and the largest of each query.
    void fit(const Unit* keys, const float* logs, int rows, int units) {
        __m512 largest[VECTORS];
        for (int r = 0; r < VECTORS; r++) largest[r] = _mm512_set1_ps(NEVER);
        for (int j = 0; j < rows; j += ROWS) {
            Tile logits;
            if constexpr (EACH == 4) {
                WholeTile whole;
#pragma GCC unroll 8
                for (int k = 0; k < ROWS; k++)
#pragma GCC unroll 3
                    for (int r = 0; r < VECTORS; r++) whole[k][r] = __v16si{};
                multiply<EACH>(whole, keys + (std::size_t)j * units, queries, units);
#pragma GCC unroll 8
                for (int k = 0; k < ROWS; k++)
#pragma GCC unroll 3
                    for (int r = 0; r < VECTORS; r++) {
                        const __m512 product = _mm512_cvtepi32_ps((__m512i)whole[k][r]);
                        logits[k][r] =
                            _mm512_fmadd_ps(product, scales[r], _mm512_set1_ps(logs[j + k]));
                    }
            } else {
#pragma GCC unroll 8
                for (int k = 0; k < ROWS; k++)
#pragma GCC unroll 3
                    for (int r = 0; r < VECTORS; r++) logits[k][r] = _mm512_set1_ps(logs[j + k]);
                multiply<EACH>(logits, keys + (std::size_t)j * units, queries, units);
            }
#pragma GCC unroll 8
            for (int k = 0; k < ROWS; k++)
#pragma GCC unroll 3
                for (int r = 0; r < VECTORS; r++) {
                    largest[r] = _mm512_max_ps(largest[r], logits[k][r]);
                    _mm512_store_ps(weights + (j + k) * TILE + r * LANES, logits[k][r]);
                }
        }
        for (int r = 0; r < VECTORS; r++) top[r] = largest[r];
    }

    // Weights of these logits, for one vector of queries.
    void exponentiate(int r, int rows, int channels) {
        const __m512 most = _mm512_add_ps(reference[r], _mm512_set1_ps(HEADROOM));
        if (_mm512_cmp_ps_mask(top[r], most, _CMP_GT_OQ)) {
            const __m512 now = _mm512_max_ps(reference[r], top[r]);
            const __m512 factor = power(_mm512_sub_ps(reference[r], now));
            reference[r] = now;
            sums[r] = _mm512_mul_ps(sums[r], factor);
            for (int d = 0; d < channels; d++) {
                float* x = out + d * TILE + r * LANES;
                _mm512_store_ps(x, _mm512_mul_ps(_mm512_load_ps(x), factor));
            }
        }
        float* x = weights + r * LANES;
        __m512 total = sums[r];
        if constexpr (PER == 1) {
#pragma GCC unroll 4
            for (int j = 0; j < rows; j++, x += TILE) {
                const __m512 w = power(_mm512_sub_ps(_mm512_load_ps(x), reference[r]));
                total = _mm512_add_ps(total, w);
                _mm512_store_ps(x, w);
            }
        } else {
#ifdef __AVX512BF16__
            const Powers powers(reference[r]);
            float* to = x;
#pragma GCC unroll 4
            for (int j = 0; j < rows; j += 2, x += 2 * TILE, to += TILE) {
                const __m512i w = powers(_mm512_load_ps(x), _mm512_load_ps(x + TILE));
                total = multiplied<2>(total, 0x3f803f80, w);  // with ones
                _mm512_store_si512(to, w);
            }
#endif
        }
        sums[r] = total;
    }

    // Up to TILE queries, `stride` units from one to the next.
    void load(const Unit* from, std::size_t stride, int count, int units) {
        for (int i = 0; i < TILE; i += LANES)
            for (int u = 0; u < units; u += LANES) {
                __m512i rows[LANES];
                for (int l = 0; l < LANES; l++) {
                    const __mmask16 mask = i + l < count ? first(units - u) : (__mmask16)0;
                    rows[l] = _mm512_maskz_loadu_epi32(mask, from + (i + l) * stride + u);
                }
                transpose(rows);
                for (int l = 0; l < std::min(LANES, units - u); l++)
                    _mm512_store_si512(queries + (u + l) * TILE + i, rows[l]);
            }
    }

    // Turn queries in bf16 into bytes, each query with a scale of its own, once its channels are
    // multiplied with `steps`, which those of the keys have.
    void quantise(const float* steps, int channels) {
        for (int r = 0; r < VECTORS; r++) {
            Unit* x = queries + r * LANES;
            const auto channel = [&](int c) {
                __m512i unit = _mm512_load_si512(x + c / 2 * TILE);
                unit = c % 2 ? _mm512_and_si512(unit, _mm512_set1_epi32((int)0xffff0000))
                             : _mm512_slli_epi32(unit, 16);
                return _mm512_mul_ps(_mm512_castsi512_ps(unit), _mm512_set1_ps(steps[c]));
            };
            __m512 most = _mm512_set1_ps(1e-30f);
#pragma GCC unroll 8
            for (int c = 0; c < channels; c++)
                most = _mm512_max_ps(most, _mm512_abs_ps(channel(c)));
            scales[r] = _mm512_mul_ps(most, _mm512_set1_ps(1 / 127.f));
            const __m512 factor = _mm512_div_ps(_mm512_set1_ps(127), most);
            const auto byte = [&](int c) {
                return _mm512_cvtps_epi32(_mm512_mul_ps(channel(c), factor));
            };
            for (int c = 0; c < channels; c += 4) {
                __m512i unit = byte(c + 3);
#pragma GCC unroll 3
                for (int i = 2; i >= 0; i--)  // unit << 8 | byte & 255
                    unit = _mm512_ternarylogic_epi32(_mm512_slli_epi32(unit, 8), byte(c + i),
                                                     _mm512_set1_epi32(255), 0xf8);
                _mm512_store_si512(x + c / 4 * TILE, unit);
            }
        }
    }

    // What `attend` found, divided by the sum of weights.
    void save(Unit* to, std::size_t stride, int count, int channels) const {
        for (int i = 0; i < count; i += LANES) {
            const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1), sums[i / LANES]);
            for (int d = 0; d < channels; d += LANES) {
                const int columns = std::min(LANES, channels - d);
                __m512i rows[LANES];
                for (int l = 0; l < LANES; l++) {
                    rows[l] = _mm512_setzero_si512();
                    if (l < columns)
                        rows[l] = _mm512_castps_si512(
                            _mm512_mul_ps(_mm512_load_ps(out + (d + l) * TILE + i), factor));
                }
                transpose(rows);
                for (int l = 0; l < LANES && i + l < count; l++) {
                    Unit* row = to + (i + l) * stride + d / PER;
                    ::store<PER>(row, _mm512_castsi512_ps(rows[l]), first(columns));
                }
            }
        }
    }
};

// Up to LANES keys, `stride` units from one to the next, as [rows / ROWS][units][ROWS].
inline void pack_keys(const Unit* from, std::size_t stride, std::size_t rows, std::size_t units,
                      Unit* to) {
    for (std::size_t u = 0; u < units; u += LANES) {
        __m512i x[LANES];
        for (std::size_t l = 0; l < LANES; l++)
            x[l] = _mm512_maskz_loadu_epi32(
                l < rows ? first(units - u) : (__mmask16)0, from + l * stride + u);
        transpose(x);
        for (std::size_t l = 0; l < std::min<std::size_t>(LANES, units - u); l++) {
            Unit* column = to + (u + l) * ROWS;
            _mm256_storeu_si256((__m256i*)column, _mm512_castsi512_si256(x[l]));
            if (rows > ROWS)
                _mm256_storeu_si256(
                    (__m256i*)(column + units * ROWS), _mm512_extracti64x4_epi64(x[l], 1));
        }
    }
}

// The keys of a head, in bf16 and `stride` units from one to the next, as bytes [count / ROWS]
// [channels / 4][ROWS]: how many of `steps`, of each channel, they are above the least.
inline void pack_keys_as_bytes(const Unit* from, std::size_t stride, std::size_t count,
                               std::size_t channels, Unit* to, float* steps) {
    for (std::size_t c = 0; c < channels; c += LANES, from += LANES / 2) {
        const __mmask16 mask = first(channels - c);
        __m512 least = _mm512_set1_ps(FLT_MAX), most = _mm512_set1_ps(-FLT_MAX);
        for (std::size_t j = 0; j < count; j++) {
            const __m512 x = load<2>(from + j * stride, mask);
            least = _mm512_min_ps(least, x);
            most = _mm512_max_ps(most, x);
        }
        const __m512 range = _mm512_max_ps(_mm512_sub_ps(most, least), _mm512_set1_ps(1e-30f));
        _mm512_mask_storeu_ps(steps + c, mask, _mm512_mul_ps(range, _mm512_set1_ps(1 / 255.f)));
        const __m512 factor = _mm512_div_ps(_mm512_set1_ps(255), range);
        for (std::size_t j = 0; j < count; j++) {
            const __m512 x = _mm512_sub_ps(load<2>(from + j * stride, mask), least);
            alignas(16) Unit units[LANES / 4];
            _mm_store_si128((__m128i*)units, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(
                                                 _mm512_mul_ps(x, factor))));
            for (std::size_t u = c / 4; u < std::min(c + LANES, channels) / 4; u++)
                to[(j / ROWS * (channels / 4) + u) * ROWS + j % ROWS] = units[u - c / 4];
        }
    }
}

// Up to LANES values, which begin at key `start`, into [channels / ROWS][count / PER][ROWS].
template <int PER>
inline void pack_values(const Unit* from, std::size_t stride, std::size_t rows, std::size_t units,
                        std::size_t count, std::size_t start, Unit* to) {
    constexpr std::size_t EACH = ROWS / PER;  // units of a row that stand together
    const std::size_t end = std::min<std::size_t>(LANES, count - start);
    for (std::size_t u = 0; u < units; u += EACH) {
        Unit* column = to + (u / EACH * (count / PER) + start / PER) * ROWS;
        for (std::size_t l = 0; l < end; l += PER, column += ROWS) {
            const Unit* x = from + l * stride + u;
            if constexpr (PER == 1) {
                _mm256_storeu_si256((__m256i*)column, l < rows ? _mm256_loadu_si256((const __m256i*)x)
                                                               : _mm256_setzero_si256());
            } else {
                const __m128i zero = _mm_setzero_si128();
                const __m128i a = l < rows ? _mm_loadu_si128((const __m128i*)x) : zero;
                const __m128i b = l + 1 < rows ? _mm_loadu_si128((const __m128i*)(x + stride)) : zero;
                _mm_storeu_si128((__m128i*)column, _mm_unpacklo_epi16(a, b));
                _mm_storeu_si128((__m128i*)(column + 4), _mm_unpackhi_epi16(a, b));
            }
        }
    }
}

template <int PER, int EACH>
void compute(const Shape& s, const Unit* q, const Unit* k, const Unit* v, const float* logs,
             std::size_t logs_stride, Unit* out) {
    struct Free {
        void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    const std::size_t units = s.channels / PER, stride = s.heads * units;
    const std::size_t count = (s.keys + ROWS - 1) / ROWS * ROWS;
    const std::size_t each_keys = count * s.channels / EACH, each = count * units;
    const std::size_t heads = s.batch * s.heads;
    const auto allocated = [](std::size_t bytes) {
        return std::unique_ptr<void, Free>(::operator new(bytes, std::align_val_t(64)));
    };
    const auto packed = allocated(heads * (each_keys + each) * sizeof(Unit));
    Unit* const values = static_cast<Unit*>(packed.get());
    Unit* const keys = values + heads * each;
    if (EACH == 4) std::fill(keys, keys + heads * each_keys, 0);  // rows behind the last key
    std::vector<float> biases(s.batch * count, NEVER), steps(heads * s.channels);
    for (std::size_t b = 0; b < s.batch; b++)
        for (std::size_t j = 0; j < s.keys; j++)
            biases[b * count + j] = logs ? logs[b * logs_stride + j] : 0.f;

    if constexpr (EACH == 4)
        tbb::parallel_for(std::size_t(0), heads, [&](std::size_t head) {
            const std::size_t offset = head / s.heads * s.keys * stride + head % s.heads * units;
            pack_keys_as_bytes(k + offset, stride, s.keys, s.channels, keys + head * each_keys,
                               &steps[head * s.channels]);
        });
    const std::size_t groups = (s.keys + LANES - 1) / LANES;
    tbb::parallel_for(std::size_t(0), heads * groups, [&](std::size_t i) {
        const std::size_t head = i / groups, j = i % groups * LANES, b = head / s.heads;
        const std::size_t offset = (b * s.keys + j) * stride + head % s.heads * units;
        const std::size_t rows = std::min<std::size_t>(LANES, s.keys - j);
        if constexpr (EACH != 4)
            pack_keys(k + offset, stride, rows, units, keys + head * each_keys + j * units);
        pack_values<PER>(v + offset, stride, rows, units, count, j, values + head * each);
    });

    const std::size_t tiles = (s.queries + TILE - 1) / TILE;
    const auto work = [&](const tbb::blocked_range<std::size_t>& range) {
        State<PER, EACH> state;
        for (std::size_t i = range.begin(); i < range.end(); i++) {
            const std::size_t head = i / tiles, start = i % tiles * TILE, b = head / s.heads;
            const std::size_t offset = (b * s.queries + start) * stride + head % s.heads * units;
            const int rows = (int)std::min<std::size_t>(TILE, s.queries - start);
            state.load(q + offset, stride, rows, (int)units);
            if constexpr (EACH == 4)
                state.quantise(&steps[head * s.channels], (int)s.channels);
            state.attend(keys + head * each_keys, values + head * each, &biases[b * count],
                         (int)count, (int)s.channels);
            state.save(out + offset, stride, rows, (int)s.channels);
        }
    };
    tbb::parallel_for(tbb::blocked_range<std::size_t>(0, heads * tiles), work);
}

}  // namespace attention
