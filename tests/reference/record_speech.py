"""Speech values: projections, talker prompt, talker and predictor steps, code2wav blocks, waves (see record_model)."""

import numpy as np
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from tests.reference.cases import Case
from tests.reference.random_rows import predictor_rows, talker_rows, vocoder_codes
from tests.reference.record_columns import columns
from tests.reference.record_thinker import margin, watching
from tests.reference.reference_model import tensors
from tests.reference.store import Recorder

SPEAKER = "Ethan"
THINKER_TOKENS = 6  # shorter than the speech, so that tts_eos and then tts_pad rows are reached
TALKER_TOKENS = 11  # ten frames: the codes of the last token are never predicted
SPEECH_CASES = (
    "text",
    "two_images",
    "audio_11s",
    "video",
    "image_audio_video",
    "audio_in_video",
    "silent_and_sound_video",
    "batch",
)


class TalkerTrace:
    """What goes through the talker during one `generate`: its prompt, its logits and the smallest decision margins."""

    def __init__(self, model):
        self.model, self.talker = model, model.talker
        self.handles = []
        self.logits, self.rows, self.positions, self.predictor_logits = [], [], [], []
        self.prompt, self.result = {}, None

    def __enter__(self):
        original = self.talker.generate

        def generate(**arguments):
            self.prompt = arguments
            self.result = original(**arguments, output_scores=True)
            return self.result

        self.talker.generate = generate
        self.handles = [
            self.talker.register_forward_hook(self._talker_step, with_kwargs=True),
            self.talker.code_predictor.register_forward_hook(
                lambda _, __, out: self.predictor_logits.append(out.logits[:, -1].detach().clone())
            ),
        ]
        return self

    def _talker_step(self, _, __, arguments, out):
        self.logits.append(out.logits[:, -1].detach().clone())
        self.rows.append(arguments["inputs_embeds"][:, -1].detach().clone())
        self.positions.append(arguments["position_ids"][-3:].detach().clone())

    def __exit__(self, *_):
        del self.talker.generate
        for handle in self.handles:
            handle.remove()

    @property
    def codes(self) -> torch.Tensor:
        """All frames that were computed [B, 16, frames], those after a row's end included."""
        return torch.stack([hidden[-1] for hidden in self.result.hidden_states if hidden[-1] is not None], dim=-1)

    def margin(self, frames: list[int]) -> float:
        """Smallest gap between best and second choice among the decisions that matter (each row up to its end)."""
        gaps, residuals = [], len(self.predictor_logits) // self.codes.shape[-1]
        for row, count in enumerate(frames):
            gaps += [margin(scores[row : row + 1]) for scores in self.result.scores[: count + 1]]
            gaps += [margin(logits[row : row + 1]) for logits in self.predictor_logits[: count * residuals]]
        return min(gaps)


def speak(model, case: Case, **arguments):
    """The reference's whole generate, greedy. Returns (ids [B, T], waves: one 1-D array per row, trace)."""
    config = model.config
    with TalkerTrace(model) as trace:
        ids, waves = model.generate(
            **tensors(case.inputs),
            speaker=SPEAKER,
            use_audio_in_video=case.use_audio_in_video,
            # The reference does not pass this flag on to the talker; its prefix does.
            talker_use_audio_in_video=case.use_audio_in_video,
            thinker_max_new_tokens=arguments.pop("thinker_max_new_tokens", THINKER_TOKENS),
            thinker_do_sample=False,
            thinker_eos_token_id=arguments.pop("thinker_eos_token_id", config.im_end_token_id),
            thinker_pad_token_id=config.im_end_token_id,
            talker_max_new_tokens=TALKER_TOKENS,
            talker_do_sample=False,
            talker_pad_token_id=config.talker_config.codec_eos_token_id,
            **arguments,
        )
    waves = [waves.reshape(-1)] if isinstance(waves, torch.Tensor) else waves
    return ids, [wave.reshape(-1).numpy() for wave in waves], trace


def variations(tied: bool) -> list[tuple[str, dict]]:
    """(key, further arguments of generate) of every spoken answer that is recorded; the case is what precedes "+".

    tied: with tied random embeddings every answer repeats one token, so that no row can end earlier than another.
    """
    keys = [(name, {}) for name in SPEECH_CASES]
    keys += [("text+two_tokens", {"thinker_max_new_tokens": 2}), ("batch+ragged", {})]
    return keys if tied else [*keys, ("batch+early_text", {})]


def attempt(model, key: str, case: Case, arguments: dict):
    """Speak one variation. Returns (ids, waves, trace, frames per row, arguments used, smallest margin).

    Random weights hardly ever end a row by themselves. "+ragged": codes that two rows say early are made end codes as
    well. "+early_text": the same with text tokens, so that two rows have less to say than the third.
    """
    ids, waves, trace = speak(model, case, **arguments)
    if key.endswith("+ragged"):
        said = trace.result.sequences
        ends = [int(said[1, 4]), int(said[2, 7]), model.config.talker_config.codec_eos_token_id]
        arguments = arguments | {"talker_eos_token_id": ends}
        ids, waves, trace = speak(model, case, **arguments)
    if key.endswith("+early_text"):
        said = ids[:, case.inputs["input_ids"].shape[1] :]
        ends = [int(said[1, 2]), int(said[2, 3]), model.config.im_end_token_id]
        arguments = arguments | {"thinker_eos_token_id": ends}
        ids, waves, trace = speak(model, case, **arguments)
    frames = frame_counts(trace)
    clear = trace.margin(frames)
    if key.endswith("+ragged") and len(set(frames)) < len(frames):
        clear = 0.0
    if key.endswith("+early_text") and not _ends_early(ids[:, case.inputs["input_ids"].shape[1] :], ends):
        clear = 0.0
    return ids, waves, trace, frames, arguments, clear


def _ends_early(said: torch.Tensor, ends: list[int]) -> bool:
    """Whether rows 1 and 2 end inside the text, after at least two tokens, and row 0 goes on to the limit."""
    first = [min([i for i, token in enumerate(row) if token in ends] + [len(row)]) for row in said.tolist()]
    return first[0] == len(said[0]) and all(2 <= n < len(said[0]) - 1 for n in first[1:])


def frame_counts(trace: TalkerTrace) -> list[int]:
    """Frames of each row before its own end."""
    total, ends = trace.codes.shape[-1], trace.prompt["eos_token_id"]
    ends = set(ends if isinstance(ends, list) else [ends])
    return [min([i for i, code in enumerate(row) if code in ends] + [total]) for row in trace.result.sequences.tolist()]


def record_speech(rec: Recorder, key: str, ids, waves, trace: TalkerTrace, frames: list[int]):
    """One spoken answer: everything at the seams between thinker, talker, predictor and code2wav.

    Steps are recorded up to each row's own end; what a batch still computes for rows that have ended has no meaning.
    """
    prompt = trace.prompt
    mask = prompt["attention_mask"].bool()
    rec.add(f"{key}/ids", ids, limit=10**9)
    rec.add(f"{key}/prompt", prompt["inputs_embeds"][mask], limit=1024)
    rec.add(f"{key}/prompt_mask", prompt["attention_mask"], limit=10**9, dtype=np.int8)
    rec.add(f"{key}/positions", trace.positions[0][:, mask], limit=10**9)
    rows = torch.stack(trace.rows[1:], dim=1)  # [B, steps, D]
    logits = torch.stack(trace.logits, dim=1)  # [B, steps + 1, V]
    positions = torch.cat(trace.positions[1:], dim=-1)
    for row, count in enumerate(frames):
        rec.add(f"{key}/step_rows/{row}", rows[row, :count], limit=1024)
        rec.add(f"{key}/step_positions/{row}", positions[:, row, :count], limit=10**9)
        rec.add(f"{key}/logits/{row}", logits[row, : count + 1][:, columns(logits.shape[-1])], limit=10**9)
        rec.add(f"{key}/codes/{row}", trace.codes[row, :, :count], limit=10**9, dtype=np.int16)
        rec.add(f"{key}/wave/{row}", waves[row], limit=10**9, dtype=np.float16)
        rec.add(f"{key}/wave_exact/{row}", waves[row], limit=1024)


def record_talker(rec: Recorder, talker, config: dict):
    """Both projections and the talker's decoder on seeded random rows."""
    rows, embeds, positions = map(torch.from_numpy, talker_rows(config))
    rec.add("projection/text", talker.text_projection(rows))
    rec.add("projection/hidden", talker.hidden_projection(rows))
    modules = {f"layer{i}": layer for i, layer in enumerate(talker.model.layers)}
    modules |= {f"mlp{i}": layer.mlp for i, layer in enumerate(talker.model.layers)}
    with watching(**modules) as seen:
        out = talker.model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
    for name in modules:
        rec.add(f"talker/{name}", seen[name][0])
    rec.add("talker/last", out.last_hidden_state)
    rec.add("talker/codec_logits", talker.codec_head(out.last_hidden_state), limit=2048)


def record_predictor(rec: Recorder, talker, config: dict):
    """The code predictor, teacher-forced on seeded codes: logits of each of its heads [groups - 1, 3, V]."""
    predictor = talker.code_predictor
    hidden, first, codes = map(torch.from_numpy, predictor_rows(config))
    rows = [hidden, talker.get_input_embeddings()(first)]
    rows += [table(codes[:, i : i + 1]) for i, table in enumerate(predictor.get_input_embeddings()[: codes.shape[1]])]
    states = predictor.model(inputs_embeds=torch.cat(rows, dim=1), use_cache=False).last_hidden_state
    logits = torch.stack([head(states[:, 1 + i]) for i, head in enumerate(predictor.lm_head)])
    rec.add("predictor/logits", logits, limit=4096)


def record_sampling(rec: Recorder, model, case: Case):
    """With the reference's default sampling: logits [V] and probabilities [V] of the first code 0 and first code 1."""
    with TalkerTrace(model) as trace:
        model.generate(
            **tensors(case.inputs),
            speaker=SPEAKER,
            thinker_max_new_tokens=THINKER_TOKENS,
            thinker_do_sample=False,
            thinker_eos_token_id=model.config.im_end_token_id,
            talker_max_new_tokens=2,
        )
    rec.add("sampling/talker_logits", trace.logits[0][0], limit=10**9)
    rec.add("sampling/talker_probabilities", trace.result.scores[0][0].softmax(-1), limit=10**9)
    logits = trace.predictor_logits[0][:1]
    warped = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(50)(None, logits))  # as prepare_inputs_for_generation asks
    rec.add("sampling/predictor_logits", logits[0], limit=10**9)
    rec.add("sampling/predictor_probabilities", warped[0].softmax(-1), limit=10**9)


def record_code2wav(rec: Recorder, vocoder, config: dict):
    """Code2wav on seeded codes [2, quantizers, frames]: embedding, each block and the whole wave [2, 1, samples]."""
    codes = torch.from_numpy(vocoder_codes(config))
    modules = {f"layer{i}": layer for i, layer in enumerate(vocoder.pre_transformer.layers)}
    modules |= {"pre_transformer_norm": vocoder.pre_transformer.norm}
    modules |= {f"upsample{i}/{j}": block for i, pair in enumerate(vocoder.upsample) for j, block in enumerate(pair)}
    modules |= {f"decoder{i}": block for i, block in enumerate(vocoder.decoder)}
    with watching(**modules) as seen:
        wave = vocoder(codes)
    rec.add("code2wav/embedding", seen["layer0.in"][0])
    for name in modules:
        rec.add(f"code2wav/{name}", seen[name][0])
    rec.add("code2wav/wave", wave, limit=8192)
    rec.notes["code2wav/loudness"] = [float(wave.abs().max()), float(wave.std())]
    # The lossy decoding in chunks, which is only of interest for comparison.
    rec.add("code2wav/chunked", vocoder.chunked_decode(codes, chunk_size=12, left_context_size=5), limit=1024)
