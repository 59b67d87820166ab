// Transposed copies of matrices out of a file into memory, bfloat16 or float32 to float32.
//
// Called from Python threads, one matrix each, while the interpreter is free.

#include "gemm.h"
#include "bfloat16.h"

namespace {

// to[j][i] = from[i][j], square by square; the rows of `to` are written from their begin to their end.
template <class T>
void turn(const T *from, i64 from_step, float *to, i64 to_step, i64 rows, i64 columns) {
  const i64 whole_rows = rows / kLanes * kLanes, whole_columns = columns / kLanes * kLanes;
  for (i64 j = 0; j < whole_columns; j += kLanes)
    for (i64 i = 0; i < whole_rows; i += kLanes) {
      vec t[kLanes];
      for (int r = 0; r < kLanes; ++r) t[r] = load(from + (i + r) * from_step + j);
      transpose(t);
      for (int r = 0; r < kLanes; ++r) store(to + (j + r) * to_step + i, t[r]);
    }
  for (i64 i = 0; i < rows; ++i)
    for (i64 j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_step + i] = widen(from[i * from_step + j]);
}

}  // namespace

// from `[rows, columns]`, to `[columns, rows]`; steps: elements from one row to the next.
extern "C" void ms_omni_turn_bfloat16(const uint16_t *from, int64_t from_step, float *to, int64_t to_step, int64_t rows,
                                      int64_t columns) {
  turn(from, from_step, to, to_step, rows, columns);
}

extern "C" void ms_omni_turn_float32(const float *from, int64_t from_step, float *to, int64_t to_step, int64_t rows,
                                     int64_t columns) {
  turn(from, from_step, to, to_step, rows, columns);
}
