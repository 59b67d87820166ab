// The operators of fused.py: whole steps of generation in one launch.

#include "decoder.h"

namespace {

// -> logits, hidden
KERNEL(decoder_step, "x[B, 1, D] cos[B, 1, d] sin[B, 1, d] head[V, D] table:l[n] -> [B, 1, V] [B, 1, D]") {
  Table t{a.get<i64>(4), a.get<i64>(4) + a.dim(4, 0)};
  Stack<float> stack(t);
  const i64 batch = a.dim(0, 0), vocabulary = a.dim(3, 0), start = t.integer(), capacity = t.integer();
  const Place place{batch, 1, start, a.get(1), a.get(2), t.address<const uint8_t>()};
  std::vector<Buffers> buffers(stack.layers());
  for (auto &layer : buffers) layer.keys = t.address<float>();
  for (auto &layer : buffers) layer = {layer.keys, t.address<float>(), capacity};
  if (!t.read() || !stack.sound()) return refuse("decoder_step: the table does not describe a stack");
  if (stack.width != a.dim(0, 2) || stack.d != 2 * a.dim(1, 2))
    return refuse("decoder_step: x and cos are not as wide as the stack, " + std::to_string(stack.width) + " and half of " +
                  std::to_string(stack.d));
  if (start < 0 || start >= capacity) return refuse("decoder_step: the cache is full");
  Team team(stack.work(batch) + 0.1 * vocabulary * stack.width);
  std::vector<float> x(a.get(0), a.get(0) + batch * stack.width);
  stack.run(team, x.data(), place, buffers.data());
  float *hidden = a.get(6);
  for (i64 row = 0; row < batch; ++row) stack.finish(x.data() + row * stack.width, hidden + row * stack.width);
  multiply<float>(team, hidden, batch, stack.width, {{a.get(3), nullptr, vocabulary, a.get(5)}});
  return 0;
}

// One id per row of logits `[rows, size]`.
struct Choice {
  bool sampled;
  float temperature;
  i64 top_k;
  float top_p;

  explicit Choice(Table &t) : sampled(t.integer()), temperature(t.number()), top_k(t.integer()), top_p(t.number()) {}

  int32_t operator()(const float *logits, i64 size, float noise) const {
    if (!sampled) return std::max_element(logits, logits + size) - logits;
    return draw_one(logits, size, noise, temperature, top_k, top_p);
  }
};

template <class W>
int frame(const Arguments &a, Table &t) {
  Stack<W> stack(t);
  const Choice choose(t);
  const i64 batch = a.dim(0, 0), residuals = a.dim(2, 1), width = stack.width, half = stack.d / 2;
  const i64 vocabulary = t.integer(), first_vocabulary = t.integer();
  const float *cos = t.address(), *sin = t.address(), *first_embedding = t.address();
  std::vector<const float *> embeddings(residuals);
  std::vector<const W *> heads(residuals);
  for (auto &embedding : embeddings) embedding = t.address();
  for (auto &head : heads) head = t.template address<const W>();

  if (!t.read() || !stack.sound() || vocabulary <= 0)
    return refuse("code_frame: the table does not describe a predictor of " + std::to_string(residuals) + " codes");
  if (width != a.dim(0, 2))
    return refuse("code_frame: hidden is " + std::to_string(a.dim(0, 2)) + " wide, expected " + std::to_string(width));

  const i64 positions = residuals + 1, kept = batch * stack.kv_heads * positions * stack.d;
  std::vector<float> store(2 * kept * stack.layers()), turns(4 * batch * half);
  std::vector<float> x(2 * batch * width), hidden(batch * width), logits(batch * vocabulary);
  std::vector<Buffers> buffers;
  for (i64 layer = 0; layer < stack.layers(); ++layer)
    buffers.push_back({store.data() + 2 * layer * kept, store.data() + (2 * layer + 1) * kept, positions});
  Team team(stack.work(batch) * residuals + 0.1 * vocabulary * width * residuals);

  int32_t *codes = a.get<int32_t>(4);
  float *sum = a.get(5);
  for (i64 row = 0; row < batch; ++row) {  // the first pass reads two tokens: the talker's state and code 0
    const int32_t code = a.get<int32_t>(1)[row];
    if (code < 0 || code >= first_vocabulary)
      return refuse("code_frame: code is " + std::to_string(code) + ", expected 0 to " + std::to_string(first_vocabulary - 1));
    const float *state = a.get(0) + row * width, *embedding = first_embedding + code * width;
    std::copy(state, state + width, x.data() + 2 * row * width);
    std::copy(embedding, embedding + width, x.data() + (2 * row + 1) * width);
    std::copy(embedding, embedding + width, sum + row * width);
    codes[row * positions] = code;
  }
  for (i64 group = 0; group < residuals; ++group) {
    const i64 fresh = group == 0 ? 2 : 1, start = group == 0 ? 0 : group + 1, rows = batch * fresh;
    float *turn = turns.data();
    for (const float *table : {cos, sin})
      for (i64 row = 0; row < rows; ++row, turn += half)
        std::copy_n(table + (start + row % fresh) * half, half, turn);
    stack.run(team, x.data(), {rows, fresh, start, turns.data(), turns.data() + rows * half, nullptr}, buffers.data());
    for (i64 row = 0; row < batch; ++row)
      stack.finish(x.data() + (fresh * row + fresh - 1) * width, hidden.data() + row * width);
    multiply<W>(team, hidden.data(), batch, width, {{heads[group], nullptr, vocabulary, logits.data()}});
    for (i64 row = 0; row < batch; ++row) {
      const int32_t code = choose(logits.data() + row * vocabulary, vocabulary, a.get(2)[row * residuals + group]);
      const float *embedding = embeddings[group] + code * width;
      std::copy(embedding, embedding + width, x.data() + row * width);
      add_scaled(sum + row * width, embedding, 1.f, width);
      if (!all_finite(logits.data() + row * vocabulary, vocabulary)) sum[row * width] = NAN;  // seen by whoever reads the sum
      codes[row * positions + group + 1] = code;
    }
  }
  return 0;
}

// -> codes, the sum of their embeddings
KERNEL(code_frame, "hidden[B, 1, D] code:i[B, 1] noise[B, r] table:l[n] -> :i[B, r + 1] [B, 1, D] | 0 < r") {
  Table t{a.get<i64>(3), a.get<i64>(3) + a.dim(3, 0)};
  return t.integer() ? frame<Half>(a, t) : frame<float>(a, t);
}

}  // namespace
