// Numbers: functions of one number and of one row that several files of kernels share.

#pragma once

#include "aot.h"

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;  // floats per vector
#else
constexpr int kLanes = 8;
#endif
typedef float vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// ---- functions of one number, written so that the compiler vectorises loops over them ------------------------------

inline float exponential(float x) {  // 2^n e^r with |r| <= ln(2)/2, relative error 1e-7; limited to the normal numbers
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.f / 5040;
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) p = p * r + c;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline float logistic(float x) { return 1.f / (1.f + exponential(-x)); }

inline float dot(const float *a, const float *b, i64 n) {
  float sum = 0;
  for (i64 i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

inline void add_scaled(float *y, const float *x, float factor, i64 n) {
  for (i64 i = 0; i < n; ++i) y[i] += factor * x[i];
}

inline void gate(const float *gate_up, float *out, i64 n) {
  for (i64 i = 0; i < n; ++i) out[i] = gate_up[i] * logistic(gate_up[i]) * gate_up[n + i];
}

// Places of the `size` largest of scores `[n]`, largest first, equal ones in order.
inline std::vector<int32_t> largest(const float *scores, i64 n, i64 size) {
  std::vector<int32_t> order(n);
  for (i64 i = 0; i < n; ++i) order[i] = i;
  std::partial_sort(order.begin(), order.begin() + size, order.end(), [=](int32_t left, int32_t right) {
    return scores[left] > scores[right] || (scores[left] == scores[right] && left < right);
  });
  order.resize(size);
  return order;
}

// One id drawn from logits `[size]`: see `draw` in __init__.py; noise uniform in [0, 1).
inline i64 draw_one(const float *logits, i64 size, float noise, float temperature, i64 top_k, float top_p) {
  const i64 kept = top_k == 0 ? size : std::min(top_k, size);
  const auto order = largest(logits, size, kept);
  std::vector<float> probs(kept), sums(kept);
  float sum = 0, before = 0, total = 0;
  for (i64 i = 0; i < kept; ++i) sum += probs[i] = exponential((logits[order[i]] - logits[order[0]]) / temperature);
  for (i64 i = 0; i < kept; ++i) {
    const float prob = probs[i] / sum;
    sums[i] = total += before < top_p ? prob : 0.f;
    before += prob;
  }
  const float target = noise * total;
  i64 place = 0;
  while (place < kept - 1 && sums[place] <= target) ++place;
  return order[place];
}

// The k likeliest experts of one token and their weights: see `route_topk` in __init__.py.
inline void route(const float *logits, i64 experts, i64 k, bool normalise, float *weights, int32_t *indices) {
  const auto order = largest(logits, experts, k);
  const float highest = logits[order[0]];
  float sum = 0, chosen = 0;
  for (i64 e = 0; e < experts; ++e) sum += exponential(logits[e] - highest);
  for (i64 j = 0; j < k; ++j) chosen += weights[j] = exponential(logits[order[j]] - highest) / sum;
  for (i64 j = 0; normalise && j < k; ++j) weights[j] /= chosen;
  std::copy(order.begin(), order.end(), indices);
}

}  // namespace
