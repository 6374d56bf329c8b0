// Arithmetic on 16 float32 values: GELU, LayerNorm's statistics, interleaving of rows.
#pragma once

#include <cmath>

#include "tile.h"

// gelu(x) = max(x, 0) - r(|x|), r(t) = t * P(normal > t) or its tanh form, falling to 0: piecewise quadratic in 16 equal
// pieces up to `limit`, coefficients from the host. Absolute error 8e-5, a fiftieth of bfloat16's rounding at 1.
struct Gelu {
  float constant[16], linear[16], quadratic[16];
  float pieces_per_unit, limit;
};

// Of two operands of which one is not a number, minimum and maximum give the second: x, so that it is not lost.
INLINE __m512 gelu(__m512 x, const Gelu& g) {
  const __m512 t = _mm512_min_ps(_mm512_set1_ps(g.limit), _mm512_abs_ps(x));
  // 2^23 + t * scale has the number of the piece, rounded, in its lowest bits, which is all the permutation reads.
  const __m512i piece = _mm512_castps_si512(
      _mm512_fmadd_ps(t, _mm512_set1_ps(g.pieces_per_unit), _mm512_set1_ps(8388608.0f)));
  const __m512 c0 = _mm512_permutexvar_ps(piece, _mm512_loadu_ps(g.constant));
  const __m512 c1 = _mm512_permutexvar_ps(piece, _mm512_loadu_ps(g.linear));
  const __m512 c2 = _mm512_permutexvar_ps(piece, _mm512_loadu_ps(g.quadratic));
  const __m512 r = _mm512_fmadd_ps(_mm512_fmadd_ps(c2, t, c1), t, c0);
  return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), r);
}

// Which of 16 values are not numbers. int8 has none of those, so the scale of a row that holds one becomes one.
INLINE __mmask16 not_numbers(__m512 v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }

struct Statistics {
  float mean, rstd;
};

// Mean and reciprocal standard deviation of one token (C,), in two passes.
INLINE Statistics statistics(const float* x, int channels, float eps) {
  __m512 s0 = _mm512_setzero_ps(), s1 = s0;
  for (int c = 0; c < channels; c += 32) {
    s0 = _mm512_add_ps(s0, _mm512_loadu_ps(x + c));
    s1 = _mm512_add_ps(s1, _mm512_loadu_ps(x + c + 16));
  }
  const float mean = _mm512_reduce_add_ps(_mm512_add_ps(s0, s1)) / float(channels);
  const __m512 m = _mm512_set1_ps(mean);
  s0 = s1 = _mm512_setzero_ps();
  for (int c = 0; c < channels; c += 32) {
    const __m512 a = _mm512_sub_ps(_mm512_loadu_ps(x + c), m), b = _mm512_sub_ps(_mm512_loadu_ps(x + c + 16), m);
    s0 = _mm512_fmadd_ps(a, a, s0);
    s1 = _mm512_fmadd_ps(b, b, s1);
  }
  return {mean, 1.0f / std::sqrt(_mm512_reduce_add_ps(_mm512_add_ps(s0, s1)) / float(channels) + eps)};
}
