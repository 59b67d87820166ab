// A decoder stack on a few rows: what `DecoderLayer` and `Decoder` do, product after product, without a launch between.

#pragma once

#include "attention.h"

namespace {

// Reads the table that cpu_fused.py writes: integers, numbers and addresses, one after the other, 64 bits each. What is read
// behind its end is 0.
struct Table {
  const i64 *at, *end;
  bool whole = true;

  i64 integer() {
    whole &= at < end;
    return at < end ? *at++ : 0;
  }
  double number() {
    const i64 bits = integer();
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  template <class T = const float>
  T *address() { return reinterpret_cast<T *>(integer()); }

  bool read() const { return whole && at == end; }  // all of it, and no more
};

template <class W>
struct Layer {  // in the order of `LayerWeights` in fused.py; null where a layer has none
  const float *input_norm;
  const W *q, *k, *v, *o;
  const float *q_bias, *k_bias, *v_bias, *o_bias, *q_norm, *k_norm, *post_norm;
  const W *gate, *up, *down;  // a dense MLP, or the shared expert
  const float *shared_gate, *router, *experts_gate_up, *experts_down;
  i64 inner, experts, chosen, expert_inner;
  bool normalise;

  explicit Layer(Table &t)
      : input_norm(t.address()), q(t.address<const W>()), k(t.address<const W>()), v(t.address<const W>()),
        o(t.address<const W>()), q_bias(t.address()), k_bias(t.address()), v_bias(t.address()), o_bias(t.address()),
        q_norm(t.address()), k_norm(t.address()), post_norm(t.address()), gate(t.address<const W>()),
        up(t.address<const W>()), down(t.address<const W>()), shared_gate(t.address()), router(t.address()),
        experts_gate_up(t.address()), experts_down(t.address()), inner(t.integer()), experts(t.integer()),
        chosen(t.integer()), expert_inner(t.integer()), normalise(t.integer()) {}
};

// Keys and values `[B, K, capacity, D]` of one layer.
struct Buffers {
  float *keys, *values;
  i64 capacity;
};

// Where the rows stand: row n is new token n % fresh of batch row n / fresh, at position start + n % fresh.
struct Place {
  i64 rows, fresh, start;
  const float *cos, *sin;  // `[rows, D / 2]`
  const uint8_t *seen;     // `[B, capacity]`: which positions are no padding; null: all. A token always sees itself
};

template <class W>
class Stack {
 public:
  i64 width, heads, kv_heads, d;

  explicit Stack(Table &t)
      : width(t.integer()), heads(t.integer()), kv_heads(t.integer()), d(t.integer()), eps_(t.number()), norm_(t.address()) {
    for (i64 count = t.integer(); count > 0 && t.whole; --count) layers_.emplace_back(t);
  }

  // Whether the sizes can be those of a stack; what the addresses point to has been compared with them in Python.
  bool sound() const {
    bool sound = width > 0 && kv_heads > 0 && heads > 0 && heads % kv_heads == 0 && d > 0 && d % 2 == 0;
    for (const auto &l : layers_) sound &= l.experts ? 0 < l.chosen && l.chosen <= l.experts && l.expert_inner > 0 : l.inner > 0;
    return sound;
  }

  i64 layers() const { return layers_.size(); }

  // Estimate for `rows` rows, in nanoseconds.
  double work(i64 rows) const {
    double weights = 0;
    for (const auto &l : layers_) {
      const i64 pairs = l.experts ? std::min(rows * l.chosen, l.experts) : 0;
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
    const auto task = [&](i64 i) { attend_head(l, place, to, i / kv_heads, i % kv_heads); };
    if (tasks * (place.start + 8) * d * (heads / kv_heads) < 20'000)  // less than it takes to share it
      for (i64 i = 0; i < tasks; ++i) task(i);
    else
      team.run(tasks, task);
    multiply<W>(team, mixed_.data(), rows, queries, {{l.o, l.o_bias, width, x, true}});
  }

  // The new tokens of one batch row and kv head: norms, rotation, storing, attention.
  void attend_head(const Layer<W> &l, const Place &place, const Buffers &to, i64 batch, i64 head) {
    const i64 group = heads / kv_heads;
    const float scale = 1.f / std::sqrt(static_cast<float>(d));
    float *keys = to.keys + (batch * kv_heads + head) * to.capacity * d;
    float *values = to.values + (batch * kv_heads + head) * to.capacity * d;
    const uint8_t *seen = place.seen ? place.seen + batch * to.capacity : nullptr;
    std::vector<i64> at;  // what the token sees
    for (i64 position = 0; position < place.start; ++position)
      if (!seen || seen[position]) at.push_back(position);
    for (i64 fresh = 0; fresh < place.fresh; ++fresh) {
      const i64 row = batch * place.fresh + fresh, position = place.start + fresh;
      const float *cos = place.cos + row * d / 2, *sin = place.sin + row * d / 2;
      float *k = k_.data() + (row * kv_heads + head) * d, *q = q_.data() + (row * heads + head * group) * d;
      turn(k, l.k_norm, cos, sin);
      std::copy(k, k + d, keys + position * d);
      const float *v = v_.data() + (row * kv_heads + head) * d;
      std::copy(v, v + d, values + position * d);
      for (i64 g = 0; g < group; ++g) turn(q + g * d, l.q_norm, cos, sin);
      at.push_back(position);
      attend_query(q, group, Sight(keys, values, at, d, d), scale, nullptr, mixed_.data() + (row * heads + head * group) * d);
      if (seen && !seen[position]) at.pop_back();
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
    weights_.resize(rows * l.chosen), indices_.resize(rows * l.chosen);
    for (i64 row = 0; row < rows; ++row)
      route(logits_.data() + row * l.experts, l.experts, l.chosen, l.normalise, weights_.data() + row * l.chosen,
            indices_.data() + row * l.chosen);
    if (l.shared_gate) share(team, l, x, rows);
    group(l, rows);
    widen_experts(team, l);
    narrow_experts(team, l);
    for (i64 pair = 0; pair < rows * l.chosen; ++pair)
      add_scaled(x + pair / l.chosen * width, results_.data() + pair * width, weights_[pair], width);
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
    const i64 count = rows * l.chosen;
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
        from[row] = normed_.data() + pairs[row] / l.chosen * width;
        gate[row] = space.data() + row * 2 * n;
        up[row] = gate[row] + n;
      }
      product_in_order(from.data(), rows, width, w, 2 * inner, gate.data(), n);
      product_in_order(from.data(), rows, width, w + inner, 2 * inner, up.data(), n);
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
