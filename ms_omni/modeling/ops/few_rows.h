// Products of few rows with matrices `[.., out, in]` as they are stored (stored.h). Their numbers are transposed and widened in registers
// and used at once: with few rows that is cheaper than to pack them (panels.h). The sums are those of `multiply` in gemm.h.

#pragma once

#include "panels.h"

namespace {

// Rows whose sums stay in registers, and up to which a matrix is not packed.
#if defined(__AVX512F__) || defined(MS_OMNI_NEON)
constexpr int kFewTile = 14, kFewRows = 28;
#else
constexpr int kFewTile = 10, kFewRows = 16;
#endif
constexpr i64 kAhead = 256;  // bytes of a row of the matrix that are fetched before they are used

// c[r][column + lane] = start + a[r] . row `row + lane` of m, for all kLanes lanes and R rows a of which `rows` are stored.
// a: transposed, R numbers for one input.
template <int R, class W>
void few_rows_tile(const float *a, i64 rows, const Matrix &m, i64 in, i64 row, float *const *c, i64 column, const float *start) {
  using Block = Words<W>;
  const i64 distance = row_bytes(m, in);
  const char *from = static_cast<const char *>(m.numbers) + row * distance;
  i64 left = distance;
  for (i64 begin = 0; begin < in; begin += kSum) {
    const i64 k = std::min(kSum, in - begin);
    const LaneScales scales(m, in, row, kLanes, begin, k);
    vec sum[R] = {};
    for (i64 i = 0; i < k; from += 4 * kLanes, left -= 4 * kLanes) {
      vec t[kLanes];
      load_turned(reinterpret_cast<const float *>(from), distance / 4, t);
      const char *next = from + kAhead + (left > kAhead ? 0 : (kLanes - 1) * distance);  // of these rows, or of the next kLanes
      for (i64 r = 0; r < kLanes; ++r) __builtin_prefetch(next + r * distance);
      for (i64 word = 0; word < kLanes; word += Block::kWords, i += Block::kNumbers, a += R * Block::kNumbers)
        Block::each(reinterpret_cast<const words *>(t) + word, i, scales, [&, i](i64 step, vec numbers) {
          MS_OMNI_UNROLL for (int r = 0; r < R; ++r) sum[r] = fma(a[(step - i) * R + r], numbers, sum[r]);
        });
    }
    MS_OMNI_UNROLL for (int r = 0; r < R; ++r) {
      if (r >= rows) continue;
      float *to = c[r] + column;
      store(to, (begin ? load(to) : start ? load(start) : vec{}) + sum[r]);
    }
  }
}

// Whether `few_rows` is for so many rows and such a matrix.
inline bool suits_few_rows(const Matrix &m, i64 rows, i64 in) {
  return 0 < rows && rows <= kFewRows && row_bytes(m, in) % (4 * kLanes) == 0;
}

// Rows of A as `few_rows` reads them.
class FewRows {
 public:
  FewRows(const float *const *rows, i64 count, i64 k)
      : tiles_((count + kFewTile - 1) / kFewTile), tile_(((count + tiles_ - 1) / tiles_ + 1) / 2 * 2), count_(count), k_(k),
        space_(tiles_ * tile_ * k) {
    if (count == 1) tile_ = 1;
    for (i64 tile = 0; tile < tiles_; ++tile)
      for (i64 r = 0; r < tile_; ++r) {
        const float *from = rows[std::min(tile * tile_ + r, count - 1)];
        float *to = space_.get() + tile * tile_ * k + r;
        for (i64 i = 0; i < k; ++i) to[i * tile_] = from[i];
      }
  }

  // c[r][column .. column + columns) = start + a[r] . rows `row` and following of m; columns: a multiple of kLanes.
  void multiply(const Matrix &m, i64 row, float *const *c, i64 column, i64 columns, const float *start) const {
    with_numbers(m, [&](auto *numbers) {
      using W = std::remove_const_t<std::remove_pointer_t<decltype(numbers)>>;
      for (i64 j = 0; j < columns; j += kLanes)  // a few rows of the matrix at a time, which stay near for all tiles
        for (i64 tile = 0; tile * tile_ < count_; ++tile)
          run<W>(space_.get() + tile * tile_ * k_, std::min(tile_, count_ - tile * tile_), m, row + j, c + tile * tile_, column + j,
                 start ? start + j : nullptr);
    });
  }

 private:
  template <class W, int R = kFewTile>
  void run(const float *a, i64 rows, const Matrix &m, i64 row, float *const *c, i64 column, const float *start) const {
    if (R == tile_) return few_rows_tile<R, W>(a, rows, m, k_, row, c, column, start);
    if constexpr (R > 2) run<W, R - 2>(a, rows, m, row, c, column, start);
    else few_rows_tile<1, W>(a, rows, m, k_, row, c, column, start);
  }

  i64 tiles_, tile_, count_, k_;
  Space<> space_;
};

}  // namespace
