// Products of bfloat16 with float32 sums (AVX-512 BF16): how operands are made and results are read.
#pragma once

#include "model.h"
#include "vectors.h"

struct Bf16 {
  using Sum = __m512;
  static constexpr int kValues = 2;        // in a word
  static constexpr int kPanelsPerTask = 8; // the rows and their hidden values stay in a megabyte of L2

  static INLINE Sum dot(Sum sum, __m512i activation, __m512i weight) {
    asm volatile("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(activation), "v"(weight));
    return sum;
  }
  static INLINE __m512i pack(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

  // Words whose lower half is from `first` and whose upper half is from `second`.
  static INLINE __m512i pair(__m512 first, __m512 second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, pack(first, second));
  }

  // One row of activations, padded to whole blocks, as row r of a panel.
  static INLINE void store_row(const float* values, int count, Word* panel, int r, float*) {
    for (int k = 0; k < count; k += 32, panel += kRows * kBlock)
      _mm512_storeu_si512(panel + r * kBlock, pack(_mm512_loadu_ps(values + k), _mm512_loadu_ps(values + k + 16)));
  }

  // Rows of activations times a panel of weight columns, plus bias.
  template <int kCount>
  static INLINE void rows_by_weights(const Word* a, const float*, const Weights& w, int panel, int words,
                                     __m512 (&out)[kCount][2]) {
    const float* bias = w.bias + panel * kColumns;
#pragma GCC unroll 14
    for (int r = 0; r < kCount; ++r) out[r][0] = _mm512_loadu_ps(bias), out[r][1] = _mm512_loadu_ps(bias + 16);
    product<Bf16, true>(a, w.words + std::size_t(panel) * words * kColumns, words, out);
  }

  template <int kCount>
  static INLINE void store_hidden(const __m512 (&u)[kCount][2], const Gelu& g, Word* panel, int column_panel) {
    Word* out = panel + column_panel * kRows * kBlock;
#pragma GCC unroll 14
    for (int r = 0; r < kCount; ++r) _mm512_storeu_si512(out + r * kBlock, pack(gelu(u[r][0], g), gelu(u[r][1], g)));
  }
  static constexpr int hidden_words(int values) { return values / 2; }
  static INLINE void finish_hidden(Word*, int, int, float*) {}

  // Token mixing of 32 channels of one image, in place.
  static void mix_tokens(const Layer& layer, const Sizes& z, const Gelu& g, const Statistics* stats, float* x,
                         Word* y, Word* hidden);
};

inline void Bf16::mix_tokens(const Layer& layer, const Sizes& z, const Gelu& g, const Statistics* stats, float* x,
                             Word* y, Word* hidden) {
  const __m512 zero = _mm512_setzero_ps();
  for (int s = 0; s < z.tokens; s += 2)
    for (int half = 0; half < 2; ++half) {
      const __m512 first = normalised(layer, z, stats, x, s, half);
      const __m512 second = s + 1 < z.tokens ? normalised(layer, z, stats, x, s + 1, half) : zero;
      _mm512_storeu_si512(y + s * 16 + half * 16, pair(first, second));
    }
  int words = ceil_div(z.tokens, 2);
  for (int p = 0; p * kRows < z.tokens_hidden; ++p)
    with_rows(std::min(kRows, z.tokens_hidden - p * kRows), [&](auto count) {
      __m512 u[kRows][2];
      auto& sum = reinterpret_cast<__m512(&)[count][2]>(u);
#pragma GCC unroll 14
      for (int r = 0; r < count; ++r) sum[r][0] = sum[r][1] = _mm512_set1_ps(layer.w1.bias[p * kRows + r]);
      product<Bf16, false>(layer.w1.words + p * panel_words(words), y, words, sum);
#pragma GCC unroll 7
      for (int r = 0; r < count; r += 2)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          _mm512_storeu_si512(hidden + (p * kRows + r) * 16 + half * 16,
                              pair(gelu(u[r][half], g), r + 1 < count ? gelu(u[r + 1][half], g) : zero));
    });
  words = ceil_div(z.tokens_hidden, 2);
  for (int p = 0; p * kRows < z.tokens; ++p)
    with_rows(std::min(kRows, z.tokens - p * kRows), [&](auto count) {
      __m512 sum[count][2];
#pragma GCC unroll 14
      for (int r = 0; r < count; ++r) sum[r][0] = sum[r][1] = zero;
      product<Bf16, false>(layer.w2.words + p * panel_words(words), hidden, words, sum);
      add_to(x + std::size_t(p) * kRows * z.channels, z.channels, sum);
    });
}
