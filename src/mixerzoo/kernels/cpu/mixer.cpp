// The whole Mixer without its head, on the cores of one processor: images in, tokens and pooled features out.
//
// Tokens stay float32. In every layer token mixing is cut into (image, 32 channels) and channel mixing into blocks of
// rows (tokens of all images); normalised rows and hidden values never leave the cache of the core that makes them.
// Where there are too few rows for the cores, the two products of channel mixing are cut into columns as well.
// Compiled once for each number format, FORMAT, and exported as `mixer_forward`.

#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "bf16.h"
#include "int8.h"

#ifndef FORMAT
#define FORMAT Bf16
#endif

namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<Word[], Free>;

Buffer allocate(std::size_t words) {
  const std::size_t bytes = (words * sizeof(Word) + 4095) / 4096 * 4096;
  Buffer buffer(static_cast<Word*>(std::aligned_alloc(4096, std::max<std::size_t>(bytes, 4096))));
  if (!buffer) throw std::bad_alloc();
  return buffer;
}

// What one thread works in: two operands, the scales of both, and one row.
struct Scratch {
  Buffer a, b;
  std::vector<float> scales, values;
};

template <class Format>
class Forward {
 public:
  Forward(const Model& model, int images, float* x, int threads)
      : m_(model), z_(model.sizes), images_(images), rows_(images * z_.tokens), x_(x) {
    patch_values_ = z_.in_channels * z_.patch * z_.patch;
    values_count_ = std::max(ceil_div(patch_values_, 64) * 64, z_.channels);
    panels_ = ceil_div(rows_, kRows);
    const int tasks = ceil_div(panels_, Format::kPanelsPerTask * threads) * threads;
    by_rows_ = panels_ >= 3 * threads;
    panels_per_task_ = by_rows_ ? ceil_div(panels_, tasks) : std::min(panels_, int(Format::kPanelsPerTask));
    const int row_tasks = ceil_div(panels_, panels_per_task_);
    column_tasks_ = by_rows_ ? 1 : ceil_div(2 * threads, row_tasks);
    row_words_ = ceil_div(z_.channels, Format::kValues);
    hidden_stride_ = panel_words(Format::hidden_words(z_.channels_hidden));
    stats_.resize(rows_);
    if (!by_rows_) {
      shared_rows_ = allocate(panels_ * panel_words(row_words_));
      shared_hidden_ = allocate(panels_ * hidden_stride_);
      shared_scales_.resize(2 * panels_ * kRows);
    }
    for (int t = 0; t < threads; ++t) scratch_.push_back(make_scratch());
  }

  // Runs in every thread of a team.
  void run(const float* pictures, float* pooled) {
    Scratch& scratch = scratch_[omp_get_thread_num()];
    Word *a = scratch.a.get(), *b = scratch.b.get();
    float *scales = scratch.scales.data(), *hidden_scales = scales + panels_per_task_ * kRows;
    float* values = scratch.values.data();
    const int row_tasks = ceil_div(panels_, panels_per_task_);

#pragma omp for schedule(dynamic, 1)
    for (int t = 0; t < row_tasks; ++t) embed(pictures, t, a, scales, values);
    for (int i = 0; i < z_.depth; ++i) {
      const Layer& layer = m_.layers[i];
#pragma omp for schedule(dynamic, 1) collapse(2)
      for (int n = 0; n < images_; ++n)
        for (int c = 0; c < z_.channels; c += kColumns) {
          Layer at = layer;
          at.gamma += c, at.beta += c;
          const std::size_t first = std::size_t(n) * z_.tokens;
          Format::mix_tokens(at, z_, m_.gelu, stats_.data() + first, x_ + first * z_.channels + c, a, b);
        }
      if (by_rows_) {
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < row_tasks; ++t) {
          const Task task = task_of(t, 0);
          normalise(task, a, scales, values);
          hidden(layer, task, a, scales, b);
          quantise_hidden(task, b, hidden_scales);
          residual(layer, task, b, hidden_scales);
          measure(task);
        }
      } else {
        mix_channels_by_columns(layer, row_tasks, values);
      }
    }
    if (pooled == nullptr) return;
#pragma omp for schedule(dynamic, 1)
    for (int n = 0; n < images_; ++n) pool(n, pooled + std::size_t(n) * z_.channels);
  }

 private:
  Scratch make_scratch() const {
    const std::size_t token_words = std::size_t(std::max(z_.tokens, z_.tokens_hidden) + 4) * kColumns;
    const int longest = std::max(row_words_, ceil_div(patch_values_, Format::kValues));
    return {allocate(std::max(panels_per_task_ * panel_words(longest), token_words)),
            allocate(std::max(panels_per_task_ * hidden_stride_, token_words)),
            std::vector<float>(2 * panels_per_task_ * kRows), std::vector<float>(values_count_)};
  }

  // Some row panels by a share of the columns.
  struct Task {
    int panel, panels, share;
  };

  Task task_of(int t, int share) const {
    const int panel = t * panels_per_task_;
    return {panel, std::min(panels_per_task_, panels_ - panel), share};
  }
  int rows_of(int panel) const { return std::min(kRows, rows_ - panel * kRows); }
  float* row(int panel) const { return x_ + std::size_t(panel) * kRows * z_.channels; }

  // Patches of the images times the stem's weights.
  void embed(const float* pictures, int t, Word* patches, float* scales, float* values) {
    const Task task = task_of(t, 0);
    const int words = ceil_div(patch_values_, Format::kValues);
    const int across = z_.width / z_.patch;
    for (int p = 0; p < task.panels; ++p) {
      for (int r = 0; r < rows_of(task.panel + p); ++r) {
        const int token = (task.panel + p) * kRows + r, n = token / z_.tokens, s = token % z_.tokens;
        const float* corner = pictures + std::size_t(n) * z_.in_channels * z_.height * z_.width +
                              std::size_t(s / across) * z_.patch * z_.width + s % across * z_.patch;
        float* out = values;
        for (int c = 0; c < z_.in_channels; ++c)
          for (int y = 0; y < z_.patch; ++y, out += z_.patch)
            std::memcpy(out, corner + (std::size_t(c) * z_.height + y) * z_.width, z_.patch * sizeof(float));
        std::fill(out, values + values_count_, 0.0f);
        Format::store_row(values, patch_values_, patches + p * panel_words(words), r, scales + p * kRows);
      }
      for (int column = 0; column < z_.channels / kColumns; ++column)
        with_rows(rows_of(task.panel + p), [&](auto count) {
          __m512 out[count][2];
          Format::template rows_by_weights<count>(patches + p * panel_words(words), scales + p * kRows, m_.stem,
                                                  column, words, out);
          store_to(row(task.panel + p) + column * kColumns, z_.channels, out);
        });
    }
    measure(task);
  }

  // The LayerNorm before channel mixing, whose scale and shift are folded into the weights.
  void normalise(const Task& task, Word* out, float* scales, float* values) const {
    for (int p = 0; p < task.panels; ++p)
      for (int r = 0; r < rows_of(task.panel + p); ++r) {
        const float* x = row(task.panel + p) + std::size_t(r) * z_.channels;
        const Statistics s = statistics(x, z_.channels, z_.eps);
        const __m512 rstd = _mm512_set1_ps(s.rstd), shift = _mm512_set1_ps(-s.mean * s.rstd);
        for (int c = 0; c < z_.channels; c += 16)
          _mm512_storeu_ps(values + c, _mm512_fmadd_ps(_mm512_loadu_ps(x + c), rstd, shift));
        Format::store_row(values, z_.channels, out + p * panel_words(row_words_), r, scales + p * kRows);
      }
  }

  void hidden(const Layer& layer, const Task& task, const Word* rows, const float* scales, Word* out) const {
    const auto [first, last] = columns(z_.channels_hidden, task.share);
    for (int column = first; column < last; ++column)
      for (int p = 0; p < task.panels; ++p)
        with_rows(rows_of(task.panel + p), [&](auto count) {
          __m512 u[count][2];
          Format::template rows_by_weights<count>(rows + p * panel_words(row_words_), scales + p * kRows, layer.w3,
                                                  column, row_words_, u);
          Format::store_hidden(u, m_.gelu, out + p * hidden_stride_, column);
        });
  }

  void quantise_hidden(const Task& task, Word* values, float* scales) const {
    for (int p = 0; p < task.panels; ++p)
      Format::finish_hidden(values + p * hidden_stride_, rows_of(task.panel + p), z_.channels_hidden, scales + p * kRows);
  }

  void residual(const Layer& layer, const Task& task, const Word* values, const float* scales) const {
    const auto [first, last] = columns(z_.channels, task.share);
    const int words = ceil_div(z_.channels_hidden, Format::kValues);
    for (int column = first; column < last; ++column)
      for (int p = 0; p < task.panels; ++p)
        with_rows(rows_of(task.panel + p), [&](auto count) {
          __m512 out[count][2];
          Format::template rows_by_weights<count>(values + p * hidden_stride_, scales + p * kRows, layer.w4, column,
                                                  words, out);
          add_to(row(task.panel + p) + column * kColumns, z_.channels, out);
        });
  }

  // Statistics of the LayerNorm behind these rows: the next layer's first, or the final one.
  void measure(const Task& task) {
    for (int t = task.panel * kRows; t < std::min(rows_, (task.panel + task.panels) * kRows); ++t)
      stats_[t] = statistics(x_ + std::size_t(t) * z_.channels, z_.channels, z_.eps);
  }

  void mix_channels_by_columns(const Layer& layer, int row_tasks, float* values) {
    float *row_scales = shared_scales_.data(), *hidden_scales = row_scales + panels_ * kRows;
#pragma omp for schedule(dynamic, 1)
    for (int p = 0; p < panels_; ++p)
      normalise({p, 1, 0}, shared_rows_.get() + p * panel_words(row_words_), row_scales + p * kRows, values);
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int t = 0; t < row_tasks; ++t)
      for (int share = 0; share < column_tasks_; ++share) {
        const Task task = task_of(t, share);
        hidden(layer, task, shared_rows_.get() + task.panel * panel_words(row_words_),
               row_scales + task.panel * kRows, shared_hidden_.get() + task.panel * hidden_stride_);
      }
#pragma omp for schedule(dynamic, 1)
    for (int p = 0; p < panels_; ++p)
      quantise_hidden({p, 1, 0}, shared_hidden_.get() + p * hidden_stride_, hidden_scales + p * kRows);
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int t = 0; t < row_tasks; ++t)
      for (int share = 0; share < column_tasks_; ++share) {
        const Task task = task_of(t, share);
        residual(layer, task, shared_hidden_.get() + task.panel * hidden_stride_, hidden_scales + task.panel * kRows);
      }
#pragma omp for schedule(dynamic, 1)
    for (int p = 0; p < panels_; ++p) measure({p, 1, 0});
  }

  // The final LayerNorm, whose scale and shift are folded into the head, averaged over the tokens of image n.
  void pool(int n, float* out) const {
    std::fill(out, out + z_.channels, 0.0f);
    const float share = 1.0f / float(z_.tokens);
    for (int s = 0; s < z_.tokens; ++s) {
      const std::size_t t = std::size_t(n) * z_.tokens + s;
      const __m512 rstd = _mm512_set1_ps(stats_[t].rstd * share);
      const __m512 shift = _mm512_set1_ps(-stats_[t].mean * stats_[t].rstd * share);
      for (int c = 0; c < z_.channels; c += 16) {
        const __m512 y = _mm512_fmadd_ps(_mm512_loadu_ps(x_ + t * z_.channels + c), rstd, shift);
        _mm512_storeu_ps(out + c, _mm512_add_ps(_mm512_loadu_ps(out + c), y));
      }
    }
  }

  struct Range {
    int first, last;
  };
  Range columns(int count, int share) const {
    const int all = count / kColumns;
    return {all * share / column_tasks_, all * (share + 1) / column_tasks_};
  }

  const Model& m_;
  const Sizes& z_;
  const int images_, rows_;
  float* const x_;
  int panels_, panels_per_task_, column_tasks_, row_words_, patch_values_, values_count_;
  bool by_rows_;
  std::size_t hidden_stride_;
  std::vector<Statistics> stats_;
  Buffer shared_rows_, shared_hidden_;
  std::vector<float> shared_scales_;
  std::vector<Scratch> scratch_;
};

}  // namespace

// pictures (N, in_channels, H, W); x (N, S, C), written; pooled (N, C), written, or null. Returns whether there was memory.
extern "C" bool mixer_forward(const Model* model, const float* pictures, int images, float* x, float* pooled,
                              int threads) {
  try {
    Forward<FORMAT> forward(*model, images, x, threads);
#pragma omp parallel num_threads(threads)
    forward.run(pictures, pooled);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}
