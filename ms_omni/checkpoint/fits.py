"""Whether a configuration can describe stored weights: counted before anything is built or listed, whatever it says."""

import re
from collections.abc import Iterable, Mapping
from operator import attrgetter

from ms_omni.errors import CheckpointError

# Numbers of the configuration (of a list: how long it is), what they count among the full names, and how many more those are.
COUNTS = (
    ("thinker_config.text_config.num_hidden_layers", r"thinker\.model\.layers\.(\d+)\.", 0),
    ("thinker_config.audio_config.encoder_layers", r"thinker\.audio_tower\.layers\.(\d+)\.", 0),
    ("thinker_config.vision_config.depth", r"thinker\.visual\.blocks\.(\d+)\.", 0),
    ("thinker_config.vision_config.deepstack_visual_indexes", r"thinker\.visual\.merger_list\.(\d+)\.", 0),
    ("talker_config.text_config.num_hidden_layers", r"talker\.model\.layers\.(\d+)\.", 0),
    ("talker_config.code_predictor_config.num_hidden_layers", r"talker\.code_predictor\.model\.layers\.(\d+)\.", 0),
    ("talker_config.num_code_groups", r"talker\.code_predictor\.lm_head\.(\d+)\.", -1),
    ("code2wav_config.num_hidden_layers", r"code2wav\.pre_transformer\.layers\.(\d+)\.", 0),
    ("code2wav_config.upsampling_ratios", r"code2wav\.upsample\.(\d+)\.", 0),
    ("code2wav_config.upsample_rates", r"code2wav\.decoder\.(\d+)\.", 3),  # convolution; blocks; activation, convolution
)
LAYERS = ("num_hidden_layers", "encoder_layers", "depth")
ROUTERS = (
    ("thinker_config.text_config", r"thinker\.model\.layers\.\d+\.mlp\.gate\.weight"),
    ("talker_config.text_config", r"talker\.model\.layers\.\d+\.mlp\.gate\.weight"),
)


def check_counts(config, stored: Mapping[str, tuple[int, ...]], prefix: str, folder) -> None:
    """Compares layers, blocks, code groups and experts of `config` with what is stored.

    Args:
        config: of a whole model (prefix ""), or of the component `prefix`, such as "thinker.".
        stored: {full name: shape}, in published or in our names.
        folder: for the message.

    Raises:
        CheckpointError: numbers larger than the names allow; a smaller one shows as tensors left over.
    """
    problems = []
    for path, pattern, more in COUNTS:
        said = _value(config, path, prefix)
        if said is not None:
            names = {hit[1] for name in stored if (hit := re.match(pattern, name))}
            found = max(0, len(names) - more) if names else 0
            number = said if isinstance(said, int) else len(said)
            if number > found:
                problems.append(f"{path} says {number}, the weights have {found}")
    for path, pattern in () if problems else ROUTERS:  # the number of layers is believed by now
        text = _value(config, path, prefix)
        if text is not None and any(map(text.is_sparse_layer, range(text.num_hidden_layers))):
            found = max((shape[0] for name, shape in stored.items() if shape and re.fullmatch(pattern, name)), default=0)
            if text.num_experts > found:
                problems.append(f"{path}.num_experts says {text.num_experts}, the weights have {found}")
    if problems:
        raise CheckpointError(
            f"{folder} does not fit the model that its configuration describes:\n  " + "\n  ".join(problems)
        )


def layers_beyond(config, stored: Iterable[str], prefix: str) -> set[str]:
    """The full names among `stored` that belong to layers behind the last one that `config` counts; arguments as above."""
    beyond = set()
    for path, pattern, _ in COUNTS:
        number = _value(config, path, prefix) if path.endswith(LAYERS) else None
        if number is not None:
            beyond |= {name for name in stored if (hit := re.match(pattern, name)) and int(hit[1]) >= number}
    return beyond


def _value(config, path, prefix):
    """What stands at `path` of a whole model's configuration; None for a part that this one is not, or leaves out."""
    section, _, inner = path.partition(".")
    if prefix and section != f"{prefix[:-1]}_config":
        return None
    owner = config if prefix else getattr(config, section, None)
    return None if owner is None else attrgetter(inner)(owner)
