#include "attention.hpp"
#include "depthwise.hpp"
#include "depthwise_bytes.hpp"
#include "head.hpp"

template void attention::compute<1, 1>(const Shape&, const Unit*, const Unit*, const Unit*,
                                       const float*, std::size_t, Unit*);
template void depthwise::compute<1>(const Shape&, const Unit*, const float*, const float*, Unit*);
template void head::compute<1>(const Shape&, const Unit*, const Unit*, const std::vector<Map>&,
                               const Unit*, const float*, float*);

#ifdef __AVX512BF16__
template void attention::compute<2, 2>(const Shape&, const Unit*, const Unit*, const Unit*,
                                       const float*, std::size_t, Unit*);
template void attention::compute<2, 4>(const Shape&, const Unit*, const Unit*, const Unit*,
                                       const float*, std::size_t, Unit*);
template void depthwise::compute<2>(const Shape&, const Unit*, const float*, const float*, Unit*);
template void head::compute<2>(const Shape&, const Unit*, const Unit*, const std::vector<Map>&,
                               const Unit*, const float*, float*);
#endif
