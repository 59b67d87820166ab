// A decoder stack on a few rows: what `DecoderLayer` and `Decoder` do, product after product, without a launch between.

#pragma once

#include "attention.h"

namespace {

// The structs that cpu_fused.py fills, by the names that it asks for here (`Struct` in cpu_kernel.py). A table is some of
// them one behind the other, 64 bits a member. A pointer is null where a layer has no such parameter.
#define MS_OMNI_LAYER(_) /* the weights of `LayerWeights` in fused.py, and sizes; gate, up, down: or the shared expert's */ \
  _(const float *, input_norm) _(const W *, q) _(const W *, k) _(const W *, v) _(const W *, o)                              \
  _(const float *, q_bias) _(const float *, k_bias) _(const float *, v_bias) _(const float *, o_bias)                       \
  _(const float *, q_norm) _(const float *, k_norm) _(const float *, post_norm)                                             \
  _(const W *, gate) _(const W *, up) _(const W *, down) _(const float *, shared_gate) _(const float *, router)             \
  _(const float *, experts_gate_up) _(const float *, experts_down)                                                          \
  _(i64, inner) _(i64, experts) _(i64, top_k) _(i64, expert_inner) _(i64, normalise)

#define MS_OMNI_STACK(_) \
  _(i64, width) _(i64, heads) _(i64, kv_heads) _(i64, head_dim) _(double, eps) _(const float *, norm) _(i64, layers)

template <class W>
STRUCT(Layer, MS_OMNI_LAYER);
STRUCT(Sizes, MS_OMNI_STACK);
NAMES(Layer<float>, Layer, MS_OMNI_LAYER)
NAMES(Sizes, Stack, MS_OMNI_STACK)

// Reads a table from its begin to its end. What would lie behind the end is zeros, and the table is not whole.
class Table {
 public:
  Table(const i64 *at, i64 size) : at_(at), end_(at + size) {}

  template <class Struct>
  Struct next() {
    Struct found{};
    if (const Struct *from = next<Struct>(1)) found = *from;
    return found;
  }

  // `count` of them; null: there are not so many.
  template <class Struct>
  const Struct *next(i64 count) {
    constexpr i64 size = sizeof(Struct) / sizeof(i64);
    whole_ &= 0 <= count && count <= (end_ - at_) / size;
    const i64 *from = at_;
    at_ += whole_ ? count * size : 0;
    return whole_ ? reinterpret_cast<const Struct *>(from) : nullptr;
  }

  bool read() const { return whole_ && at_ == end_; }  // all of it, and no more

 private:
  const i64 *at_, *end_;
  bool whole_ = true;
};

// Keys and values `[blocks, K, block, D]` of one layer.
struct Buffers {
  float *keys, *values;
};

// Where the rows stand: row n is new token n % fresh of batch row n / fresh, whose last one is at position length - 1.
struct Place {
  i64 rows, fresh;
  const float *cos, *sin;        // `[rows, D / 2]`
  std::vector<int32_t> lengths;  // `[B]`: positions of each batch row, the new ones included
  std::vector<int32_t> tables;   // `[B, width]`: the numbers of its blocks
  i64 width, block;
};

template <class W>
class Stack {
 public:
  const i64 width, heads, kv_heads, d;

  explicit Stack(Table &t) : Stack(t.next<Sizes>(), t) {}

  // Whether the sizes can be those of a stack; what the addresses point to has been compared with them in Python.
  bool sound() const {
    bool sound = width > 0 && kv_heads > 0 && heads > 0 && heads % kv_heads == 0 && d > 0 && d % 2 == 0;
    for (const auto &l : layers_) sound &= l.experts ? 0 < l.top_k && l.top_k <= l.experts && l.expert_inner > 0 : l.inner > 0;
    return sound;
  }

  i64 layers() const { return layers_.size(); }

  // Estimate for `rows` rows, in nanoseconds.
  double work(i64 rows) const {
    double weights = 0;
    for (const auto &l : layers_) {
      const i64 pairs = l.experts ? std::min(rows * l.top_k, l.experts) : 0;
      weights += width * (2. * (heads + kv_heads) * d + 3. * l.inner + 3. * pairs * l.expert_inner + l.experts);
    }
    return weights * (0.1 + 0.02 * rows);
  }

  // x `[rows, width]` becomes the output of the last layer before the final norm.
  void run(Team &team, float *x, const Place &place, const Buffers *buffers) {
    normed_.resize(place.rows * width);
    for (i64 i = 0; i < layers(); ++i) {
      attend(team, layers_[i], x, place, buffers[i]);
      norm_rows(x, layers_[i].post_norm, place.rows);
      if (layers_[i].experts) mix(team, layers_[i], x, place.rows);
      else dense(team, layers_[i], x, place.rows);
    }
  }

  // y = the final norm of x, one row.
  void finish(const float *x, float *y) const { rms_norm(x, norm_, eps_, y, width); }

 private:
  Stack(const Sizes &s, Table &t) : width(s.width), heads(s.heads), kv_heads(s.kv_heads), d(s.head_dim), eps_(s.eps), norm_(s.norm) {
    if (const auto *layers = t.next<Layer<W>>(s.layers)) layers_.assign(layers, layers + s.layers);
  }

  void norm_rows(const float *x, const float *weight, i64 rows) {
    for (i64 row = 0; row < rows; ++row) rms_norm(x + row * width, weight, eps_, normed_.data() + row * width, width);
  }

  void attend(Team &team, const Layer<W> &l, float *x, const Place &place, const Buffers &to) {
    const i64 rows = place.rows, queries = heads * d, keys = kv_heads * d;
    q_.resize(rows * queries), k_.resize(rows * keys), v_.resize(rows * keys), mixed_.resize(rows * queries);
    norm_rows(x, l.input_norm, rows);
    multiply<W>(team, normed_.data(), rows, width,
                {{l.q, l.q_bias, queries, q_.data()}, {l.k, l.k_bias, keys, k_.data()}, {l.v, l.v_bias, keys, v_.data()}});
    const i64 tasks = rows / place.fresh * kv_heads;
    i64 positions = 8 * rows;
    for (const i64 length : place.lengths) positions += length;
    const auto task = [&](i64 i) { attend_head(l, place, to, i / kv_heads, i % kv_heads); };
    if (positions * d * heads < 20'000)  // less than it takes to share it
      for (i64 i = 0; i < tasks; ++i) task(i);
    else
      team.run(tasks, task);
    multiply<W>(team, mixed_.data(), rows, queries, {{l.o, l.o_bias, width, x, true}});
  }

  // The new tokens of one batch row and kv head: norms, rotation, storing, attention.
  void attend_head(const Layer<W> &l, const Place &place, const Buffers &to, i64 batch, i64 head) {
    const i64 group = heads / kv_heads;
    const float scale = 1.f / std::sqrt(static_cast<float>(d));
    const auto rows = [&](float *at) {
      return Rows{at + head * place.block * d, d, place.tables.data() + batch * place.width, place.block, kv_heads * place.block * d};
    };
    const Rows keys = rows(to.keys), values = rows(to.values);
    for (i64 fresh = 0; fresh < place.fresh; ++fresh) {
      const i64 row = batch * place.fresh + fresh, position = place.lengths[batch] - place.fresh + fresh;
      const float *cos = place.cos + row * d / 2, *sin = place.sin + row * d / 2;
      float *k = k_.data() + (row * kv_heads + head) * d, *q = q_.data() + (row * heads + head * group) * d;
      turn(k, l.k_norm, cos, sin);
      std::copy(k, k + d, keys[position]);
      const float *v = v_.data() + (row * kv_heads + head) * d;
      std::copy(v, v + d, values[position]);
      for (i64 g = 0; g < group; ++g) turn(q + g * d, l.q_norm, cos, sin);
      Sight sight(keys, values, d, d);
      sight.add(0, position + 1);
      attend_query(q, group, sight, scale, nullptr, mixed_.data() + (row * heads + head * group) * d);
    }
  }

  void turn(float *x, const float *weight, const float *cos, const float *sin) const {
    if (weight) rms_norm(x, weight, eps_, x, d);
    rotate(x, cos, sin, x, d / 2);
  }

  void dense(Team &team, const Layer<W> &l, float *x, i64 rows) {
    gate_.resize(rows * l.inner), up_.resize(rows * l.inner);
    multiply<W>(team, normed_.data(), rows, width,
                {{l.gate, nullptr, l.inner, gate_.data()}, {l.up, nullptr, l.inner, up_.data()}});
    activate(gate_.data(), up_.data(), gate_.data(), rows * l.inner);
    multiply<W>(team, gate_.data(), rows, l.inner, {{l.down, nullptr, width, x, true}});
  }

  // Experts, and the shared one where there is one.
  void mix(Team &team, const Layer<W> &l, float *x, i64 rows) {
    logits_.resize(rows * l.experts);
    multiply<float>(team, normed_.data(), rows, width, {{l.router, nullptr, l.experts, logits_.data()}});
    weights_.resize(rows * l.top_k), indices_.resize(rows * l.top_k);
    for (i64 row = 0; row < rows; ++row)
      route(logits_.data() + row * l.experts, l.experts, l.top_k, l.normalise, weights_.data() + row * l.top_k,
            indices_.data() + row * l.top_k);
    if (l.shared_gate) share(team, l, x, rows);
    group(l, rows);
    widen_experts(team, l);
    narrow_experts(team, l);
    for (i64 pair = 0; pair < rows * l.top_k; ++pair)
      add_scaled(x + pair / l.top_k * width, results_.data() + pair * width, weights_[pair], width);
  }

  void share(Team &team, const Layer<W> &l, float *x, i64 rows) {
    gate_.resize(rows * l.inner), up_.resize(rows * l.inner), results_.resize(rows * width);
    multiply<W>(team, normed_.data(), rows, width,
                {{l.gate, nullptr, l.inner, gate_.data()}, {l.up, nullptr, l.inner, up_.data()}});
    activate(gate_.data(), up_.data(), gate_.data(), rows * l.inner);
    multiply<W>(team, gate_.data(), rows, l.inner, {{l.down, nullptr, width, results_.data()}});
    for (i64 row = 0; row < rows; ++row)
      add_scaled(x + row * width, results_.data() + row * width,
                 logistic(all(dot(normed_.data() + row * width, l.shared_gate, width)))[0], width);
  }

  // Pairs (row, place) ordered by expert: those of the u-th expert in use are pairs_[first_[u] .. first_[u + 1]).
  void group(const Layer<W> &l, i64 rows) {
    const i64 count = rows * l.top_k;
    pairs_.resize(count);
    for (i64 pair = 0; pair < count; ++pair) pairs_[pair] = pair;
    std::stable_sort(pairs_.begin(), pairs_.end(), [&](i64 a, i64 b) { return indices_[a] < indices_[b]; });
    first_.clear();
    for (i64 i = 0; i < count; ++i)
      if (i == 0 || indices_[pairs_[i]] != indices_[pairs_[i - 1]]) first_.push_back(i);
    used_ = first_.size();
    first_.push_back(count);
  }

  // Columns of a matrix with rows of `columns` that one task fetches: whole cache lines, and enough tasks for the team.
  i64 panel(const Team &team, i64 columns) const {
    const i64 wanted = std::max<i64>(1, 4 * team.size() / std::max<i64>(used_, 1));
    return std::max<i64>(64, (columns / wanted + 63) / 64 * 64);
  }

  // hidden_ [pair] = silu(gate) * up
  void widen_experts(Team &team, const Layer<W> &l) {
    const i64 inner = l.expert_inner, step = panel(team, inner), panels = (inner + step - 1) / step;
    hidden_.resize(pairs_.size() * inner);
    team.run(used_ * panels, [&](i64 task) {
      const i64 use = task / panels, begin = task % panels * step, n = std::min(step, inner - begin);
      const i64 rows = first_[use + 1] - first_[use];
      const i64 *pairs = pairs_.data() + first_[use];
      const float *w = l.experts_gate_up + indices_[pairs[0]] * width * 2 * inner + begin;
      std::vector<float> space(rows * 2 * n);
      std::vector<const float *> from(rows);
      std::vector<float *> gate(rows), up(rows);
      for (i64 row = 0; row < rows; ++row) {
        from[row] = normed_.data() + pairs[row] / l.top_k * width;
        gate[row] = space.data() + row * 2 * n;
        up[row] = gate[row] + n;
      }
      if (n == inner) {  // both lie side by side, there and here
        product_in_order(from.data(), rows, width, w, 2 * inner, gate.data(), 2 * n);
      } else {
        product_in_order(from.data(), rows, width, w, 2 * inner, gate.data(), n);
        product_in_order(from.data(), rows, width, w + inner, 2 * inner, up.data(), n);
      }
      for (i64 row = 0; row < rows; ++row) activate(gate[row], up[row], hidden_.data() + pairs[row] * inner + begin, n);
    });
  }

  // results_ [pair] = hidden_ [pair] down
  void narrow_experts(Team &team, const Layer<W> &l) {
    const i64 inner = l.expert_inner, step = panel(team, width), panels = (width + step - 1) / step;
    results_.resize(pairs_.size() * width);
    team.run(used_ * panels, [&](i64 task) {
      const i64 use = task / panels, begin = task % panels * step, n = std::min(step, width - begin);
      const i64 rows = first_[use + 1] - first_[use];
      const i64 *pairs = pairs_.data() + first_[use];
      std::vector<const float *> from(rows);
      std::vector<float *> to(rows);
      for (i64 row = 0; row < rows; ++row) {
        from[row] = hidden_.data() + pairs[row] * inner;
        to[row] = results_.data() + pairs[row] * width + begin;
      }
      const float *w = l.experts_down + indices_[pairs[0]] * inner * width + begin;
      product_in_order(from.data(), rows, inner, w, width, to.data(), n);
    });
  }

  float eps_;
  const float *norm_;
  std::vector<Layer<W>> layers_;
  std::vector<float> normed_, q_, k_, v_, mixed_, gate_, up_, logits_, weights_, hidden_, results_;
  std::vector<int32_t> indices_;
  std::vector<i64> pairs_, first_;
  i64 used_ = 0;
};

}  // namespace
