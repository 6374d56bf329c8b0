// What the host hands over, and what both number formats share.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vectors.h"

// One weight matrix as an operand: of columns where activations are rows (stem, channel mixing), of rows where
// activations are columns (token mixing). `scale` and `offset` are for int8: the value of one unit of each output's
// weights, and what its sum starts with to undo the offset of 128 in the activations.
struct Weights {
  const Word* words;
  const float* bias;
  const float* scale;
  const std::int32_t* offset;
};

struct Layer {
  const float* gamma;  // of the LayerNorm before token mixing (C)
  const float* beta;   // (C)
  Weights w1, w2, w3, w4;
};

struct Sizes {
  int in_channels, height, width, patch;  // of an image, pixels
  int tokens, channels, tokens_hidden, channels_hidden, depth;
  float eps;
};

struct Model {
  Sizes sizes;
  Gelu gelu;
  Weights stem;
  const Layer* layers;
};

// 16 channels of token s behind the LayerNorm before token mixing; x is at the first of 32 channels.
INLINE __m512 normalised(const Layer& layer, const Sizes& z, const Statistics* stats, const float* x, int s, int half) {
  const float* p = x + std::size_t(s) * z.channels + half * 16;
  const __m512 rstd = _mm512_set1_ps(stats[s].rstd), shift = _mm512_set1_ps(-stats[s].mean * stats[s].rstd);
  const __m512 y = _mm512_fmadd_ps(_mm512_loadu_ps(p), rstd, shift);
  return _mm512_fmadd_ps(y, _mm512_loadu_ps(layer.gamma + half * 16), _mm512_loadu_ps(layer.beta + half * 16));
}

template <int kCount>
INLINE void add_to(float* x, int stride, const __m512 (&v)[kCount][2]) {
#pragma GCC unroll 14
  for (int r = 0; r < kCount; ++r, x += stride) {
    _mm512_storeu_ps(x, _mm512_add_ps(_mm512_loadu_ps(x), v[r][0]));
    _mm512_storeu_ps(x + 16, _mm512_add_ps(_mm512_loadu_ps(x + 16), v[r][1]));
  }
}

template <int kCount>
INLINE void store_to(float* x, int stride, const __m512 (&v)[kCount][2]) {
#pragma GCC unroll 14
  for (int r = 0; r < kCount; ++r, x += stride) {
    _mm512_storeu_ps(x, v[r][0]);
    _mm512_storeu_ps(x + 16, v[r][1]);
  }
}
