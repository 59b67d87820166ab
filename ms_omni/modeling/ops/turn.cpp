// Transposed copies of matrices out of a file into memory, bfloat16 or float32 to float32.
//
// Called from Python threads, one matrix each, while the interpreter is free.

#include "gemm.h"

namespace {

typedef uint16_t half_vec __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(2), may_alias));
typedef uint32_t bits_vec __attribute__((vector_size(kLanes * sizeof(uint32_t))));

inline vec widened(const float *x) { return load(x); }
inline vec widened(const uint16_t *x) {  // a bfloat16 is the upper half of a float32
  return (vec)(__builtin_convertvector(*reinterpret_cast<const half_vec *>(x), bits_vec) << 16);
}
inline float one(float x) { return x; }
inline float one(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// to[j][i] = from[i][j], square by square; the rows of `to` are written from their begin to their end.
template <class T>
void turn(const T *from, i64 from_step, float *to, i64 to_step, i64 rows, i64 columns) {
  const i64 whole_rows = rows / kLanes * kLanes, whole_columns = columns / kLanes * kLanes;
  for (i64 j = 0; j < whole_columns; j += kLanes)
    for (i64 i = 0; i < whole_rows; i += kLanes) {
      vec t[kLanes];
      for (int r = 0; r < kLanes; ++r) t[r] = widened(from + (i + r) * from_step + j);
      transpose(t);
      for (int r = 0; r < kLanes; ++r) store(to + (j + r) * to_step + i, t[r]);
    }
  for (i64 i = 0; i < rows; ++i)
    for (i64 j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_step + i] = one(from[i * from_step + j]);
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
