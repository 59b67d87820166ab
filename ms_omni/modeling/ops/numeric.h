// Functions of one row that several files of kernels share.

#pragma once

#include "vectors.h"

namespace {

inline void rms_norm(const float *x, const float *weight, float eps, float *y, i64 n) {
  const float scale = 1.f / std::sqrt(dot(x, x, n) / n + eps);
  map(n, y, [=](vec x, vec weight) { return x * scale * weight; }, x, weight);
}

inline void layer_norm(const float *x, const float *weight, const float *bias, float eps, float *y, i64 n) {
  const float mean = sum(x, n) / n;
  map(n, y, [=](vec x) { return x - mean; }, x);
  const float scale = 1.f / std::sqrt(dot(y, y, n) / n + eps);
  map(n, y, [=](vec y, vec weight, vec bias) { return fma(y * scale, weight, bias); }, y, weight, bias);
}

// y = silu(gate) * up
inline void activate(const float *gate, const float *up, float *y, i64 n) {
  map(n, y, [](vec gate, vec up) { return sigmoid_linear(gate) * up; }, gate, up);
}

// Turns the pairs (x[i], x[half + i]); y may be x.
inline void rotate(const float *x, const float *cos, const float *sin, float *y, i64 half) {
  for (i64 i = 0; i < half; i += kLanes) {
    const i64 n = std::min<i64>(kLanes, half - i);
    const auto part = [n](const float *x) { return n == kLanes ? load(x) : load(x, n); };
    const auto keep = [n](float *y, vec x) { n == kLanes ? store(y, x) : store(y, x, n); };
    const vec low = part(x + i), high = part(x + half + i), c = part(cos + i), s = part(sin + i);
    keep(y + i, low * c - high * s);
    keep(y + half + i, high * c + low * s);
  }
}

// Places of the `size` largest of scores `[n]`, largest first, equal ones in order.
inline std::vector<int32_t> likeliest(const float *scores, i64 n, i64 size) {
  std::vector<int32_t> order(n);
  for (i64 i = 0; i < n; ++i) order[i] = i;
  std::partial_sort(order.begin(), order.begin() + size, order.end(), [=](int32_t left, int32_t right) {
    return scores[left] > scores[right] || (scores[left] == scores[right] && left < right);
  });
  order.resize(size);
  return order;
}

// Whether x `[n]` holds neither NaN nor infinities: no exponent is all ones.
inline bool all_finite(const float *x, i64 n) {
  uint32_t found = 0;
  for (i64 i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    found |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !found;
}

// One id drawn from logits `[size]`: see `draw` in __init__.py; noise uniform in [0, 1).
inline i64 draw_one(const float *logits, i64 size, float noise, float temperature, i64 top_k, float top_p) {
  const i64 candidates = top_k <= 0 ? size : std::min(top_k, size);
  const auto order = likeliest(logits, size, candidates);
  std::vector<float> probs(candidates), sums(candidates);
  for (i64 i = 0; i < candidates; ++i) probs[i] = (logits[order[i]] - logits[order[0]]) / temperature;
  softmax(probs.data(), candidates);
  float before = 0, total = 0;
  for (i64 i = 0; i < candidates; ++i) {
    sums[i] = total += before < top_p ? probs[i] : 0.f;
    before += probs[i];
  }
  const float target = noise * total;
  i64 place = 0;
  while (place < candidates - 1 && sums[place] <= target) ++place;
  return order[place];
}

// The k likeliest experts of one token and their weights: see `route_topk` in __init__.py.
inline void route(const float *logits, i64 experts, i64 k, bool normalise, float *weights, int32_t *indices) {
  const auto order = likeliest(logits, experts, k);
  std::vector<float> probs(logits, logits + experts);
  softmax(probs.data(), experts);
  float chosen = 0;
  for (i64 j = 0; j < k; ++j) chosen += weights[j] = probs[order[j]];
  for (i64 j = 0; normalise && j < k; ++j) weights[j] /= chosen;
  std::copy(order.begin(), order.end(), indices);
}

}  // namespace
