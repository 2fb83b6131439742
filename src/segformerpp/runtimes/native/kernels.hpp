// The kernels, which `kernels.cpp` has. `PER` is how many numbers a unit holds: 1 or 2.
//
// What is compiled for AVX512_BF16 is for AVX512_VNNI and AVX512_VBMI, too.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

constexpr int LANES = 16;  // of a vector

// What is read, moved and multiplied at a time: one f32, two neighbours in bf16, or four bytes.
using Unit = std::uint32_t;

namespace attention {

constexpr int ROWS = 8;             // keys, or channels of values, in a tile
constexpr int MOST_CHANNELS = 128;  // of a head

struct Shape {
    std::size_t batch, queries, keys, heads, channels;
};

// Queries [batch][queries][heads][channels], keys and values [batch][keys][heads][channels]; logs,
// of each image `logs_stride` apart, or null. Output like the queries. EACH: channels in a unit of
// queries and keys as they are multiplied: PER, or 4 for bytes, in which a NaN may be lost.
template <int PER, int EACH>
void compute(const Shape& shape, const Unit* q, const Unit* k, const Unit* v, const float* logs,
             std::size_t logs_stride, Unit* out);

}  // namespace attention

namespace depthwise {

struct Shape {
    std::size_t batch, height, width, channels;
    int above, below;  // rows of zeros
};

// Images [batch][height][width][channels] -> [batch][height - 2 + above + below][width][channels].
// weight: [9][channels].
template <int PER>
void compute(const Shape& shape, const Unit* in, const float* weight, const float* bias, Unit* out);

}  // namespace depthwise

namespace depthwise_bytes {

constexpr int GROUP = 64;      // channels worked on together
constexpr int PIECES = 64;     // of the curve
constexpr double END = 4;      // where it ends
constexpr int MOST_BITS = 6;   // by which whole numbers are finer than steps of the result

struct Shape {
    std::size_t batch, height, width, channels;
};

// What is quantised: `zero` stands for 0, and one more for `step` more.
struct Result {
    double step;
    int zero;

    // How many bits finer than steps whole numbers are, which up to `END` have 16; negative: none.
    int bits() const {
        int bits = MOST_BITS;
        while (bits >= 0 && END / step * (1 << bits) > 32767) bits--;
        return END / step * (1 << std::max(bits, 0)) >= PIECES ? bits : -1;
    }
};

// Images [batch][height][width][channels] -> of the same shape.
//
// weight: [9][channels]; the convolution is factor times what bytes give, and bias. zeros: the byte
// of each channel that stands for 0. Below 2^31 of what a step is divided into.
void compute(const Shape& shape, const std::uint8_t* in, const std::int8_t* weight,
             const float* factor, const float* bias, const std::uint8_t* zeros,
             const Result& result, std::uint8_t* out);

}  // namespace depthwise_bytes

namespace head {

constexpr int MAPS = 3;    // coarser scales
constexpr int WIDTH = 32;  // features, or classes, of a tile

// What a coarser scale adds: [batch][height][width][features].
struct Map {
    const Unit* data;
    std::size_t height, width;
};

struct Shape {
    std::size_t batch, height, width;       // of the finest scale
    std::size_t depth, features, classes;   // channels of its tokens, of the sum, of the result
};

// Tokens [batch][height][width][depth] -> [batch][height][width][classes].
//
// weight: [features / WIDTH][depth / PER][WIDTH]; classifier: [n][features / PER][WIDTH] and bias:
// [n * WIDTH], filled up with zeros behind the last class.
template <int PER>
void compute(const Shape& shape, const Unit* in, const Unit* weight, const std::vector<Map>& maps,
             const Unit* classifier, const float* bias, float* out);

}  // namespace head
