"""The talker's cells and the code predictor against the reference, on seeded random rows."""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ms_omni.modeling.steps import FrameGraph
from tests.parity.watching import watching
from tests.reference.random_rows import predictor_rows, talker_rows


def test_projections(model, speech_values, config, close):
    rows, _, _ = talker_rows(config)
    close(speech_values, "projection/text", model.talker.text_projection(Tensor(rows)), "talker: projections")
    close(speech_values, "projection/hidden", model.talker.hidden_projection(Tensor(rows)), "talker: projections")


def test_talker_layers(model, speech_values, config, close):
    """Decoder with shared experts and three-dimensional positions, head over the codec vocabulary."""
    _, embeds, positions = talker_rows(config)
    layers = model.talker.model.layers
    cells = {f"layer{i}": layer for i, layer in enumerate(layers)}
    cells |= {f"mlp{i}": layer.mlp for i, layer in enumerate(layers)}
    cache = model.talker.model.new_cache(len(embeds), embeds.shape[1])
    with watching(**cells) as seen:
        logits, last = model.talker.read(Tensor(embeds), positions, cache, np.ones(embeds.shape[:2], bool))
    for name in cells:
        part = "talker: experts" if name.startswith("mlp") else "talker: layers"
        close(speech_values, f"talker/{name}", seen[name][0], part)
    close(speech_values, "talker/last", last, "talker: final norm")
    close(speech_values, "talker/codec_logits", logits, "talker: codec logits")


def test_code_predictor(model, speech_values, config, close):
    """Every residual head on given codes: the first two rows at once, then one row per code through the cache."""
    hidden, first, codes = predictor_rows(config)
    predictor = model.talker.code_predictor
    step, logits = FrameGraph(model.talker, len(hidden), None), []
    store = (step.keys, step.values)
    rows = np.concatenate([hidden, _embed(model.talker.get_input_embeddings(), first)], axis=1)
    logits.append(predictor.read(Tensor(rows), step.metadata[0], store, 0).asnumpy())
    for group in range(1, config["talker_config"]["num_code_groups"] - 1):
        rows = _embed(predictor.model.codec_embedding[group - 1], codes[:, group - 1 : group])
        logits.append(predictor.read(Tensor(rows), step.metadata[group], store, group).asnumpy())
    close(speech_values, "predictor/logits", np.stack(logits), "code predictor: logits")


def _embed(table, ids):
    return table(Tensor(ids.astype(np.int32), ms.int32)).asnumpy()
