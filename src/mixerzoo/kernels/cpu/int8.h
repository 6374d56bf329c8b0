// Products of bytes with int32 sums (AVX-512 VNNI): activations unsigned, weights signed.
//
// Activations are quantised as they appear, with a scale of their own for every row (every channel in token mixing):
// values of either sign as round(v / scale) + 128, and behind GELU, which is above -0.171, as round((v + 0.171) / scale),
// so that all 255 steps are used. The host folds both offsets into `offset` and `bias`; in token mixing the second is
// one number for a whole token, which every LayerNorm removes, and is left out.
#pragma once

#include "model.h"
#include "vectors.h"

struct Int8 {
  using Sum = __m512i;
  static constexpr int kValues = 4;
  static constexpr int kPanelsPerTask = 8;
  static constexpr float kGeluFloor = 0.171f;
  static constexpr float kLargestHalf = 65504.0f;

  static INLINE Sum dot(Sum sum, __m512i activation, __m512i weight) {
    asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(activation), "v"(weight));
    return sum;
  }

  static INLINE void store_row(const float* values, int count, Word* panel, int r, float* scales) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 lost = 0;
    for (int k = 0; k < count; k += 16) {
      const __m512 v = _mm512_loadu_ps(values + k);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
      lost |= not_numbers(v);
    }
    const float scale = lost ? NAN : std::max(_mm512_reduce_max_ps(largest), 1e-30f) / 127.0f;
    scales[r] = scale;
    const __m512 inverse = _mm512_set1_ps(1.0f / scale), offset = _mm512_set1_ps(128.0f);
    for (int k = 0; k < count; k += 64, panel += kRows * kBlock)
      for (int i = 0; i < 4; ++i)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(panel + r * kBlock) + i,
                         bytes(_mm512_fmadd_ps(_mm512_loadu_ps(values + k + i * 16), inverse, offset)));
  }

  template <int kCount>
  static INLINE void rows_by_weights(const Word* a, const float* scales, const Weights& w, int panel, int words,
                                     __m512 (&out)[kCount][2]) {
    const int column = panel * kColumns;
    Sum sum[kCount][2];
#pragma GCC unroll 14
    for (int r = 0; r < kCount; ++r)
      sum[r][0] = _mm512_loadu_si512(w.offset + column), sum[r][1] = _mm512_loadu_si512(w.offset + column + 16);
    product<Int8, true>(a, w.words + std::size_t(panel) * words * kColumns, words, sum);
#pragma GCC unroll 14
    for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(scales[r]), _mm512_loadu_ps(w.scale + column + h * 16));
        out[r][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][h]), scale, _mm512_loadu_ps(w.bias + column + h * 16));
      }
  }

  // Hidden values wait in half precision until their whole row is known.
  template <int kCount>
  static INLINE void store_hidden(const __m512 (&u)[kCount][2], const Gelu& g, Word* panel, int column_panel) {
    Word* out = panel + column_panel * kRows * kBlock;
#pragma GCC unroll 14
    for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kBlock) + h,
                            _mm512_cvtps_ph(_mm512_min_ps(_mm512_set1_ps(kLargestHalf), gelu(u[r][h], g)),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static constexpr int hidden_words(int values) { return values / 2; }

  // Quantise the rows of one panel of hidden values, in place: what is written is behind what is read.
  static INLINE void finish_hidden(Word* panel, int rows, int count, float* scales) {
    for (int r = 0; r < rows; ++r) {
      const Word* in = panel + r * kBlock;
      __m512i largest = _mm512_setzero_si512();  // magnitudes in half precision order like integers, NaN above all
      for (int k = 0; k < count; k += 32, in += kRows * kBlock)
        largest = _mm512_max_epi16(largest, _mm512_and_si512(_mm512_loadu_si512(in), _mm512_set1_epi16(0x7fff)));
      const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(largest));
      const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(largest, 1));
      const int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(low, high));
      scales[r] = (_cvtsh_ss(static_cast<unsigned short>(bits)) + kGeluFloor) / 255.0f;
      const __m512 inverse = _mm512_set1_ps(1.0f / scales[r]), offset = _mm512_set1_ps(kGeluFloor / scales[r]);
      for (int k = 0; k < count / 64; ++k)
        for (int part = 0; part < 2; ++part) {
          const __m512i v = _mm512_loadu_si512(panel + ((2 * k + part) * kRows + r) * kBlock);
          for (int i = 0; i < 2; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(panel + (k * kRows + r) * kBlock) + part * 2 + i,
                             bytes(_mm512_fmadd_ps(halves(v, i), inverse, offset)));
        }
    }
  }

  static void mix_tokens(const Layer& layer, const Sizes& z, const Gelu& g, const Statistics* stats, float* x,
                         Word* y, Word* hidden);

 private:
  static INLINE __m128i bytes(__m512 v) { return _mm512_cvtusepi32_epi8(rounded(v)); }
  static INLINE __m512i rounded(__m512 v) {
    const __m512i nearest = _mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_setzero_si512());
    return _mm512_min_epi32(nearest, _mm512_set1_epi32(255));
  }
  static INLINE __m512 halves(__m512i v, int i) {
    return _mm512_cvtph_ps(i ? _mm512_extracti64x4_epi64(v, 1) : _mm512_castsi512_si256(v));
  }

  // Quantise `count` rows of 32 floats with a scale for each column, in place, as columns of words of four rows.
  static INLINE void quantise_columns(Word* rows, int count, float above, float below, float steps, float (&scales)[32]) {
    float* values = reinterpret_cast<float*>(rows);
    for (int half = 0; half < 2; ++half) {
      __m512 largest = _mm512_set1_ps(1e-30f);
      __mmask16 lost = 0;
      for (int s = 0; s < count; ++s) {
        const __m512 v = _mm512_loadu_ps(values + s * 32 + half * 16);
        largest = _mm512_max_ps(_mm512_abs_ps(v), largest);
        lost |= not_numbers(v);
      }
      const __m512 range = _mm512_mask_mov_ps(_mm512_add_ps(largest, _mm512_set1_ps(below)), lost, _mm512_set1_ps(NAN));
      const __m512 scale = _mm512_div_ps(range, _mm512_set1_ps(steps));
      _mm512_storeu_ps(scales + half * 16, scale);
      const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), scale);
      const __m512 offset = _mm512_fmadd_ps(_mm512_set1_ps(below), inverse, _mm512_set1_ps(above));
      for (int s = 0; s < count; s += 4) {
        __m512i word = _mm512_setzero_si512();
        for (int i = std::min(3, count - 1 - s); i >= 0; --i) {
          const __m512 v = _mm512_fmadd_ps(_mm512_loadu_ps(values + (s + i) * 32 + half * 16), inverse, offset);
          word = _mm512_or_si512(_mm512_slli_epi32(word, 8), rounded(v));
        }
        _mm512_storeu_si512(rows + (s / 4) * 32 + half * 16, word);
      }
    }
  }
};

inline void Int8::mix_tokens(const Layer& layer, const Sizes& z, const Gelu& g, const Statistics* stats, float* x,
                             Word* y, Word* hidden) {
  float scales[32];
  for (int s = 0; s < z.tokens; ++s)
    for (int half = 0; half < 2; ++half)
      _mm512_storeu_ps(reinterpret_cast<float*>(y) + s * 32 + half * 16, normalised(layer, z, stats, x, s, half));
  quantise_columns(y, z.tokens, 128.0f, 0.0f, 127.0f, scales);
  int words = ceil_div(z.tokens, 4);
  for (int p = 0; p * kRows < z.tokens_hidden; ++p)
    with_rows(std::min(kRows, z.tokens_hidden - p * kRows), [&](auto count) {
      const int row = p * kRows;
      Sum sum[count][2];
#pragma GCC unroll 14
      for (int r = 0; r < count; ++r) sum[r][0] = sum[r][1] = _mm512_set1_epi32(layer.w1.offset[row + r]);
      product<Int8, false>(layer.w1.words + p * panel_words(words), y, words, sum);
#pragma GCC unroll 14
      for (int r = 0; r < count; ++r)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(layer.w1.scale[row + r]), _mm512_loadu_ps(scales + half * 16));
          const __m512 u = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][half]), scale, _mm512_set1_ps(layer.w1.bias[row + r]));
          _mm512_storeu_ps(reinterpret_cast<float*>(hidden) + (row + r) * 32 + half * 16, gelu(u, g));
        }
    });
  quantise_columns(hidden, z.tokens_hidden, 0.0f, kGeluFloor, 255.0f, scales);
  words = ceil_div(z.tokens_hidden, 4);
  for (int p = 0; p * kRows < z.tokens; ++p)
    with_rows(std::min(kRows, z.tokens - p * kRows), [&](auto count) {
      Sum sum[count][2];
      __m512 out[count][2];
#pragma GCC unroll 14
      for (int r = 0; r < count; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
      product<Int8, false>(layer.w2.words + p * panel_words(words), hidden, words, sum);
#pragma GCC unroll 14
      for (int r = 0; r < count; ++r)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          out[r][half] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][half]),
                                       _mm512_mul_ps(_mm512_set1_ps(layer.w2.scale[p * kRows + r]), _mm512_loadu_ps(scales + half * 16)));
      add_to(x + std::size_t(p) * kRows * z.channels, z.channels, out);
    });
}
