// One tile of a matrix product, 14 rows by 32 columns, held in 28 of the 32 vector registers.
//
// Both operands are arrays of 32-bit words; a word holds neighbours along the contracted axis (two bfloat16 or four
// bytes), so one instruction multiplies and adds 16 words. Legend: K contracted axis, in words.
//
//   rows     [row panel][K / 16][14][16]   a panel's 14 rows, 64 bytes at a time: one word is broadcast per step
//   columns  [column panel][K][32]         a panel's 32 columns, two vectors per step
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define INLINE inline __attribute__((always_inline))

using Word = std::int32_t;

constexpr int kRows = 14;       // of a tile
constexpr int kColumns = 32;    // of a tile
constexpr int kBlock = 16;      // words of a row that lie together
constexpr int kAhead = 16;      // steps by which columns are prefetched

INLINE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Words of one row panel whose rows are `words` long.
INLINE constexpr std::size_t panel_words(int words) { return std::size_t(ceil_div(words, kBlock)) * kRows * kBlock; }

// One step: word `a` of every row times one word of every column. `Format::dot` is written as assembly, because GCC
// moves loads across these instructions and then spills sums inside the loop (a fifth of int8's speed).
template <class Format, bool kRowsAreActivations, int kCount>
INLINE void step(const Word* a, const Word* b, typename Format::Sum (&sum)[kCount][2]) {
  const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
#pragma GCC unroll 14
  for (int r = 0; r < kCount; ++r) {
    const __m512i row = _mm512_set1_epi32(a[r * kBlock]);
    if constexpr (kRowsAreActivations) {
      sum[r][0] = Format::dot(sum[r][0], row, b0);
      sum[r][1] = Format::dot(sum[r][1], row, b1);
    } else {
      sum[r][0] = Format::dot(sum[r][0], b0, row);
      sum[r][1] = Format::dot(sum[r][1], b1, row);
    }
  }
}

// sum += rows * columns over `words` words of the contracted axis.
template <class Format, bool kRowsAreActivations, int kCount>
INLINE void product(const Word* a, const Word* b, int words, typename Format::Sum (&sum)[kCount][2]) {
  constexpr int kUnrolled = 4;
  for (; words >= kBlock; words -= kBlock, a += kRows * kBlock) {
    for (int s = 0; s < kBlock; s += kUnrolled, b += kUnrolled * kColumns) {
#pragma GCC unroll 8
      for (int line = 0; line < 2 * kUnrolled; ++line)
        _mm_prefetch(reinterpret_cast<const char*>(b + kAhead * kColumns + line * 16), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int i = 0; i < kUnrolled; ++i) step<Format, kRowsAreActivations>(a + s + i, b + i * kColumns, sum);
    }
  }
  for (int s = 0; s < words; ++s, b += kColumns) step<Format, kRowsAreActivations>(a + s, b, sum);
}

// Calls `run` with the number of rows as a compile-time constant; the last panel may have fewer than 14.
template <int kCount = kRows, class Run>
INLINE void with_rows(int rows, Run run) {
  if (rows == kCount) {
    run(std::integral_constant<int, kCount>());
  } else if constexpr (kCount > 1) {
    with_rows<kCount - 1>(rows, run);
  }
}
