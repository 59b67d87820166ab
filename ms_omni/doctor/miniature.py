"""The miniature checkpoint of this repository on its sample files: answers that mean something, in text and speech."""

from .finding import error, note, ok, one_line

ADVICE = "run ms-omni demo, and again with MS_OMNI_OPS=reference: it shows each answer beside the right one"


def answers(_):
    """One finding on all samples, one on its speech in its own ears; a note where there is no miniature."""
    from ..demo.asking import ask
    from ..demo.samples import find_miniature, find_samples, load_samples
    from ..errors import OmniError
    from ..input.processor import Qwen3OmniMoeProcessor
    from ..model import Qwen3OmniMoeForConditionalGeneration

    try:
        folder = find_miniature()
        samples = load_samples(find_samples(folder))
    except OmniError:
        yield note("not tried: the miniature checkpoint is not here; install ms_omni again")
        return
    processor = Qwen3OmniMoeProcessor.from_pretrained(folder)
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, progress=False, compile_steps=False)
    speaker = next(iter(model.config.talker_config.speaker_id))
    said = [ask(model, processor, sample, speaker, seed=0) for sample in samples]
    wrong = [
        f"{sample.shown}: {one_line(answer.text)!r}" for sample, answer in zip(samples, said) if answer.text != sample.answer
    ]
    yield (
        error(f"wrong answers to {len(wrong)} of {len(samples)} samples: {'; '.join(wrong)}", ADVICE)
        if wrong
        else ok(f"right answers to all {len(samples)} samples: sound, pictures, video with and without its sound, text")
    )
    misheard = [f"{answer.text} as {one_line(answer.heard)}" for answer in said if answer.heard not in (None, answer.text)]
    if misheard:
        yield note(f"in its own speech it heard {', '.join(misheard)}; sampled speech is not always clear")
    else:
        yield ok("it understands its own speech")
