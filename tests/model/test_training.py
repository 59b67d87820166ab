"""Training needs no switch: gradients of a model from a configuration, under whichever operators the process uses."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from ms_omni import Qwen3OmniMoeCode2Wav, Qwen3OmniMoeTalkerForConditionalGeneration
from ms_omni.config import load_named_config
from ms_omni.modeling import ops


@pytest.fixture
def learning(thinker, prompt):
    """The thinker, the loss of a batch as a function without arguments, and its trainable parameters."""
    for weight in thinker.parameters():  # so that the loss hangs on every part of it
        if weight.ndim > 1:
            weight.set_data(weight * 1.5)
    labels = prompt["input_ids"].copy()
    labels[:, :5] = -100
    return thinker, lambda: thinker(**prompt, labels=labels, output_router_logits=True).loss, thinker.trainable_params()


def test_every_weight_has_the_gradient_that_the_loss_has(learning):
    _, loss, weights = learning
    before = loss().asnumpy()
    value, gradients = ms.value_and_grad(loss, None, weights)()
    assert value.asnumpy() == pytest.approx(before, rel=1e-5) and len(gradients) == len(weights)
    size = [np.abs(gradient.asnumpy()).max() for gradient in gradients]
    # attention does not see what is the same for all keys, the bias of a key
    silent = [weight.name for weight, largest in zip(weights, size) if not largest > 0]
    assert all("k_proj.bias" in name for name in silent)

    rng = np.random.default_rng(3)
    for part in ("audio_tower.conv2d1.weight", "visual.patch_embed.proj.weight", "experts.down", "lm_head.weight"):
        weight, gradient = next((w, g.asnumpy()) for w, g in zip(weights, gradients) if w.name.endswith(part))
        kept = weight.asnumpy().copy()
        way = np.sign(gradient) * rng.uniform(0.5, 1, gradient.shape).astype(np.float32)
        step, ends = np.float32(3e-4), []  # small, for the routers jump
        for side in (step, -step):
            weight.set_data(Tensor(kept + side * way))
            ends.append(float(loss().asnumpy()))
        weight.set_data(Tensor(kept))
        measured = (ends[0] - ends[1]) / (2 * step)
        assert measured == pytest.approx((gradient * way).sum(), rel=0.05), part


def test_adam_lowers_the_loss_and_leaves_frozen_weights(learning):
    thinker, loss, _ = learning
    thinker.requires_grad_(False)
    thinker.get_decoder().requires_grad_(True)
    assert thinker.num_parameters(only_trainable=True) == thinker.model.num_parameters()
    frozen = thinker.lm_head.weight.asnumpy().copy()
    optimizer = nn.Adam(thinker.train().trainable_params(), learning_rate=3e-3)
    step = ms.value_and_grad(loss, None, optimizer.parameters)
    values = []
    for _ in range(3):
        value, gradients = step()
        optimizer(gradients)
        values.append(float(value.asnumpy()))
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
    assert (thinker.lm_head.weight.asnumpy() == frozen).all()


def test_a_cell_of_a_users_own_trains_it(thinker):
    ids = np.arange(20, 32).reshape(2, 6)

    class Loss(nn.Cell):
        def __init__(self):
            super().__init__()
            self.thinker = thinker

        def construct(self, ids):
            return self.thinker(ids, labels=ids).loss

    net = Loss()
    train = nn.TrainOneStepCell(net, nn.SGD(net.trainable_params(), 0.1))
    train.set_train(True)
    assert float(train(Tensor(ids))) > float(train(Tensor(ids)))


def test_fast_operators_again_afterwards(thinker):
    ids = np.arange(20, 32).reshape(2, 6)
    before = thinker.eval()(ids).logits.asnumpy()
    ms.value_and_grad(lambda: thinker.train()(ids, labels=ids).loss, None, thinker.trainable_params())()
    assert not ops.recording()
    assert (thinker(ids).logits.asnumpy() == before).all()


def test_a_cache_does_not_go_with_a_gradient(thinker):
    ids = np.arange(20, 32).reshape(2, 6)
    past = thinker(ids).past_key_values
    with pytest.raises(ValueError, match="past_key_values"):
        ms.grad(lambda: thinker(ids, labels=ids, past_key_values=past).loss, None, thinker.trainable_params())()


def test_embeddings_carry_their_gradient(thinker):
    """What prompt tuning learns: rows in the place of embeddings."""
    rows = Parameter(Tensor(np.random.default_rng(1).normal(size=(1, 5, 32)).astype(np.float32)), name="rows")
    gradient = ms.grad(lambda: thinker(inputs_embeds=rows, labels=np.arange(5)[None]).loss, None, [rows])()
    assert np.abs(gradient[0].asnumpy()).max() > 0


def test_the_parts_that_speak():
    config = load_named_config("tiny")
    ms.set_seed(2)
    talker = Qwen3OmniMoeTalkerForConditionalGeneration(config.talker_config)
    ids = np.random.default_rng(0).integers(0, 50, (2, 5))
    weights = talker.model.trainable_params()
    gradients = ms.grad(lambda: talker(ids, labels=ids).loss, None, weights)()
    assert all(np.abs(gradient.asnumpy()).max() > 0 for gradient in gradients)

    vocoder = Qwen3OmniMoeCode2Wav(config.code2wav_config)
    codes = ids[:1, :1] + np.zeros((1, config.code2wav_config.num_quantizers, 3), int)
    heard = [vocoder.code_embedding.weight, *vocoder.pre_transformer.trainable_params(), *vocoder.decoder.trainable_params()]
    target = Tensor(np.float32(0.5))
    gradients = ms.grad(lambda: ((vocoder(codes) - target) ** 2).mean(), None, heard)()
    assert sum(np.abs(gradient.asnumpy()).max() > 0 for gradient in gradients) > 0.9 * len(heard)
