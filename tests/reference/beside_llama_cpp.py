"""The thinker's layers at the published sizes beside llama.cpp on the same processors: decoding and prompts, in turn, as ratios.

    pip install gguf                                           and in llama.cpp's sources (llama-cpp-python's have them, in vendor/)
    cmake -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON && cmake --build build --target llama-bench
    python -m tests.reference.beside_llama_cpp PATH/build/bin/llama-bench --layers 2

Weights are random: Q8_0 and Q4_0 (a scale for 32 weights) there, int8 (a scale per output) and int4 (per 128) here; the output layer has
8 bits on both sides. Prints tokens per second of both sides (medians of the rounds) and ours over theirs.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

PROMPTS, TOKENS = (128, 512), 32
BITS = {"Q8_0": 8, "Q4_0": 4}


def write_gguf(path, text, layers, kind):
    """A `qwen3moe` of these sizes, its matrices as blocks of random codes."""
    import gguf

    rng, width, d = np.random.default_rng(0), text.hidden_size, text.head_dim
    writer = gguf.GGUFWriter(str(path), "qwen3moe", use_temp_file=True)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(text.moe_intermediate_size)
    writer.add_expert_feed_forward_length(text.moe_intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(d)
    writer.add_value_length(d)
    writer.add_expert_count(text.num_experts)
    writer.add_expert_used_count(text.num_experts_per_tok)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope_theta)

    def blocks(name, kind, *shape):
        code_bytes = 4 * BITS[kind]
        block = np.dtype([("scale", np.float16), ("codes", np.uint8, code_bytes)])
        made = np.empty((*shape[:-1], shape[-1] // 32), block)
        made["codes"] = rng.integers(0, 256, made["codes"].shape, np.uint8)
        made["scale"] = 1 / (2 ** (BITS[kind] - 1) * np.sqrt(shape[-1]))
        raw = made.view(np.uint8).reshape(*shape[:-1], -1)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])

    def floats(name, *shape):
        random = rng.standard_normal(shape) / np.sqrt(shape[-1]) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", random.astype(np.float32))

    blocks("token_embd", "Q8_0", text.vocab_size, width)
    blocks("output", "Q8_0", text.vocab_size, width)
    floats("output_norm", width)
    queries, keys, inner, experts = (
        text.num_attention_heads * d,
        text.num_key_value_heads * d,
        text.moe_intermediate_size,
        text.num_experts,
    )
    for layer in range(layers):
        at = f"blk.{layer}"
        for name, size in (("attn_norm", width), ("ffn_norm", width), ("attn_q_norm", d), ("attn_k_norm", d)):
            floats(f"{at}.{name}", size)
        for name, outputs, inputs in (
            ("q", queries, width),
            ("k", keys, width),
            ("v", keys, width),
            ("output", width, queries),
        ):
            blocks(f"{at}.attn_{name}", kind, outputs, inputs)
        floats(f"{at}.ffn_gate_inp", experts, width)
        for name, outputs, inputs in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            blocks(f"{at}.ffn_{name}_exps", kind, experts, outputs, inputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs(bench, path, threads, more=()):
    """Tokens per second by name."""
    tests = ["-p", ",".join(map(str, PROMPTS)), "-n", str(TOKENS), "-t", str(threads), "-r", "1", "-o", "json"]
    done = subprocess.run([bench, "-m", str(path), *tests, *more], check=True, capture_output=True, text=True)
    return {f"prompt {run['n_prompt']}" if run["n_prompt"] else "decode": run["avg_ts"] for run in json.loads(done.stdout)}


class Ours:
    """As many layers, and the output layer, as the engine calls them."""

    def __init__(self, text, layers, bits):
        import mindspore as ms

        from ms_omni.checkpoint.storage import storage_of
        from ms_omni.modeling.layer import exchange, lazy_parameters
        from ms_omni.modeling.layers import Linear
        from ms_omni.modeling.thinker import ThinkerTextModel

        vocabulary, text.vocab_size, text.num_hidden_layers = text.vocab_size, 32, layers
        with lazy_parameters(ms.float32):
            self.model, self.head = ThinkerTextModel(text), Linear(text.hidden_size, vocabulary, bias=False)
        text.vocab_size = vocabulary
        shapes = {name: parameter.shape for name, parameter in self.model.parameters_and_names()}
        group = 128 if bits == 4 else None
        stored = {name: storage_of(f"thinker.model.{name}", shape, bits, group) for name, shape in shapes.items()}
        exchange(self.model, {name: storage for name, storage in stored.items() if storage is not None})
        exchange(self.head, {"weight": storage_of("thinker.lm_head.weight", self.head.weight.shape, bits)})
        rng = np.random.default_rng(0)
        for cell in (self.model, self.head):
            for name, parameter in cell.parameters_and_names():
                self._fill(name, parameter, rng, bits if cell is self.model else 8)
        self.width = text.hidden_size
        self.decode(1)

    @staticmethod
    def _fill(name, parameter, rng, bits):
        from mindspore import Tensor

        kind, shape = str(parameter.dtype).lower(), parameter.shape
        if kind.endswith("int8"):
            made = Tensor(rng.integers(0, 256, shape, np.uint8).view(kind))
        elif name.endswith("_scale"):
            made = Tensor(np.full(shape, 1 / (2 ** (bits - 1) * 45), np.float32)).astype(parameter.dtype)
        else:
            random = rng.standard_normal(shape) / np.sqrt(shape[-1]) if len(shape) > 1 else np.ones(shape)
            made = Tensor(random.astype(np.float32))
        parameter.set_data(made)

    def decode(self, tokens):
        from mindspore import Tensor

        from ms_omni.engine.kv_pool import KVPool, PoolStep

        step = PoolStep(self.model, self.head, KVPool.of(self.model, 2), compile_after=None)
        x = Tensor(np.random.default_rng(1).standard_normal((1, 1, self.width), np.float32))
        began = time.perf_counter()
        for place in range(tokens):
            lengths = np.array([place + 1], np.int32)
            logits, _ = step(x, self._rope([place]), step.pool.tables([[0, 1]], [place + 1]), lengths)
            logits.asnumpy()
        return tokens / (time.perf_counter() - began)

    def prompt(self, tokens):
        from mindspore import Tensor

        from ms_omni.engine.kv_pool import KVPool
        from ms_omni.modeling import BLOCK_TOKENS

        blocks = -(-tokens // BLOCK_TOKENS)
        pool = KVPool.of(self.model, blocks)
        x = Tensor(np.random.default_rng(2).standard_normal((1, tokens, self.width), np.float32))
        began = time.perf_counter()
        hidden = pool.read_chunk(self.model, x, self._rope(range(tokens)), 0, tokens, list(range(blocks)), wanted=())
        self.head.logits(hidden[:, -1:]).asnumpy()
        return tokens / (time.perf_counter() - began)

    def _rope(self, places):
        return self.model.rope(np.broadcast_to(np.array(places, np.float32), (3, 1, len(places))))

    def measured(self):
        return {**{f"prompt {tokens}": self.prompt(tokens) for tokens in PROMPTS}, "decode": self.decode(TOKENS)}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bench", help="llama.cpp's llama-bench")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(BITS))
    parser.add_argument(
        "--bench-options", default="", help='of llama-bench, such as "--repack 0" where its AMX kernels fail'
    )
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    from ms_omni.config import load_named_config
    from ms_omni.runtime import setup

    setup("float32")
    text = load_named_config("published").thinker_config.text_config
    for kind in options.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(path, text, options.layers, kind)
            ours, rounds = Ours(text, options.layers, BITS[kind]), []
            for _ in range(options.rounds):
                rounds.append((ours.measured(), theirs(options.bench, path, options.threads, options.bench_options.split())))
        for name in rounds[0][0]:
            here, there = (float(np.median([round_[side][name] for round_ in rounds])) for side in (0, 1))
            print(
                f"int{BITS[kind]} beside {kind}, {options.layers} layers, {options.threads} threads: {name}: "
                f"{here:.1f} and {there:.1f} tokens/s, ratio {here / there:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
