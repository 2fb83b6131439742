// The decode head behind what each scale adds: resizing, the sum, ReLU and the classifier, for a
// few pixels at a time, so that the features of the finest scale are never stored.

#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "vectors.hpp"

namespace head {

constexpr int PIXELS = 12;              // of a tile
constexpr int VECTORS = WIDTH / LANES;  // of channels, of a tile

template <int WIDE>
using Tile = __m512[PIXELS][WIDE];

// Where a row or column lies between two of a coarser scale (pixel centres are at halves).
struct Place {
    std::size_t low, high;
    float share;  // of `high`

    Place(std::size_t i, std::size_t size, std::size_t coarse) {
        const float at = ((float)i + .5f) * (float)coarse / (float)size - .5f;
        const float inside = std::min(std::max(at, 0.f), (float)(coarse - 1));
        low = (std::size_t)inside;
        high = std::min(low + 1, coarse - 1);
        share = inside - (float)low;
    }
};

inline __m512 between(__m512 low, __m512 high, __m512 share) {
    return _mm512_fmadd_ps(share, _mm512_sub_ps(high, low), low);
}

// sums[p][r] += rows[p][n] * weight[n][r] over all n.
template <int PER, int WIDE>
inline __attribute__((always_inline)) void multiply(
    Tile<WIDE>& sums, const Unit* const rows[PIXELS], const Unit* weight, std::size_t count) {
    for (std::size_t n = 0; n < count; n++, weight += WIDTH) {
        __m512i units[WIDE];
#pragma GCC unroll 2
        for (int r = 0; r < WIDE; r++) units[r] = _mm512_loadu_si512(weight + r * LANES);
#pragma GCC unroll 12
        for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 2
            for (int r = 0; r < WIDE; r++)
                sums[p][r] = multiplied<PER>(sums[p][r], rows[p][n], units[r]);
    }
}

template <int PER>
class Row {
public:
    Row(const Shape& shape, const std::vector<Map>& maps) : m_shape(shape), m_maps(maps) {
        for (const Map& map : maps) {
            m_values.emplace_back(map.width * shape.features);
            m_places.emplace_back();
            for (std::size_t x = 0; x < shape.width; x++)
                m_places.back().emplace_back(x, shape.width, map.width);
        }
        m_sums.resize(PIXELS * shape.features);
        m_features.resize(PIXELS * shape.features / PER);
    }

    // Resize the coarser scales to the height of a row.
    void move(std::size_t image, std::size_t y) {
        const std::size_t features = m_shape.features;
        for (std::size_t i = 0; i < m_maps.size(); i++) {
            const Map& map = m_maps[i];
            const Place place(y, m_shape.height, map.height);
            const std::size_t row = map.width * features / PER;
            const Unit* low = map.data + (image * map.height + place.low) * row;
            const Unit* high = map.data + (image * map.height + place.high) * row;
            const __m512 share = _mm512_set1_ps(place.share);
            float* to = m_values[i].data();
            for (std::size_t c = 0; c < map.width * features; c += LANES)
                _mm512_storeu_ps(to + c, between(load<PER>(low + c / PER),
                                                 load<PER>(high + c / PER), share));
        }
    }

    // Logits of up to PIXELS pixels of the row from `x` on, of which `in` is the first.
    void write(std::size_t x, std::size_t count, const Unit* in, const Unit* weight,
               const Unit* classifier, const float* bias, float* out) {
        const auto& s = m_shape;
        const std::size_t units = s.depth / PER, features = s.features / PER;
        const Unit *tokens[PIXELS], *fused[PIXELS];
        for (std::size_t p = 0; p < PIXELS; p++) {
            const std::size_t here = std::min(p, count - 1);
            tokens[p] = in + here * units;
            fused[p] = m_features.data() + p * features;
            resize(x + here, m_sums.data() + p * s.features);
        }
        for (std::size_t c = 0; c < s.features; c += WIDTH) {
            Tile<VECTORS> sums;
#pragma GCC unroll 12
            for (std::size_t p = 0; p < PIXELS; p++)
#pragma GCC unroll 2
                for (int r = 0; r < VECTORS; r++)
                    sums[p][r] = _mm512_loadu_ps(m_sums.data() + p * s.features + c + r * LANES);
            multiply<PER, VECTORS>(sums, tokens, weight + c * units, units);
#pragma GCC unroll 12
            for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 2
                for (int r = 0; r < VECTORS; r++)
                    store<PER>(m_features.data() + p * features + (c + r * LANES) / PER,
                               _mm512_max_ps(_mm512_setzero_ps(), sums[p][r]));
        }
        for (std::size_t c = 0; c < s.classes; c += WIDTH) {
            const Unit* weight = classifier + c * features;
            if (s.classes - c > LANES)
                classify<VECTORS>(c, count, fused, weight, bias, out);
            else
                classify<1>(c, count, fused, weight, bias, out);
        }
    }

private:
    // Logits from class `c` on.
    template <int WIDE>
    void classify(std::size_t c, std::size_t count, const Unit* const fused[PIXELS],
                  const Unit* weight, const float* bias, float* out) const {
        const std::size_t classes = m_shape.classes;
        Tile<WIDE> sums;
#pragma GCC unroll 12
        for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 2
            for (int r = 0; r < WIDE; r++) sums[p][r] = _mm512_loadu_ps(bias + c + r * LANES);
        multiply<PER, WIDE>(sums, fused, weight, m_shape.features / PER);
#pragma GCC unroll 12
        for (std::size_t p = 0; p < PIXELS; p++)
#pragma GCC unroll 2
            for (std::size_t r = 0; r < WIDE; r++)
                if (p < count)
                    _mm512_mask_storeu_ps(out + p * classes + c + r * LANES,
                                          first(classes - c - r * LANES), sums[p][r]);
    }

    // The sum of the coarser scales in a column.
    void resize(std::size_t x, float* to) const {
        const float *low[MAPS], *high[MAPS];
        __m512 share[MAPS];
        for (int i = 0; i < MAPS; i++) {
            const Place& place = m_places[i][x];
            low[i] = m_values[i].data() + place.low * m_shape.features;
            high[i] = m_values[i].data() + place.high * m_shape.features;
            share[i] = _mm512_set1_ps(place.share);
        }
        for (std::size_t c = 0; c < m_shape.features; c += LANES) {
            __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 3
            for (int i = 0; i < MAPS; i++)
                sum = _mm512_add_ps(sum, between(_mm512_loadu_ps(low[i] + c),
                                                 _mm512_loadu_ps(high[i] + c), share[i]));
            _mm512_storeu_ps(to + c, sum);
        }
    }

    const Shape& m_shape;
    const std::vector<Map>& m_maps;
    std::vector<std::vector<float>> m_values;  // of each scale: [width][features]
    std::vector<std::vector<Place>> m_places;  // of each scale: of each column
    std::vector<float> m_sums;                 // of the coarser scales: [PIXELS][features]
    std::vector<Unit> m_features;              // [PIXELS][features]
};

template <int PER>
void compute(const Shape& s, const Unit* in, const Unit* weight, const std::vector<Map>& maps,
             const Unit* classifier, const float* bias, float* out) {
    const auto work = [&](const tbb::blocked_range<std::size_t>& rows) {
        Row<PER> row(s, maps);
        for (std::size_t i = rows.begin(); i < rows.end(); i++) {
            row.move(i / s.height, i % s.height);
            for (std::size_t x = 0; x < s.width; x += PIXELS) {
                const std::size_t at = i * s.width + x;
                row.write(x, std::min<std::size_t>(PIXELS, s.width - x), in + at * s.depth / PER,
                          weight, classifier, bias, out + at * s.classes);
            }
        }
    };
    tbb::parallel_for(tbb::blocked_range<std::size_t>(0, s.batch * s.height, 4), work);
}

}  // namespace head
