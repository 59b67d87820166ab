"""What speaks in a process of its own: messages become jobs of a scheduler, whose plans a `SpeechStage` follows."""

from typing import Any

from .. import runtime
from ..errors import OmniError
from ..generation.request import SpeechParams
from ..generation.talker_prompt import ROLE_ROWS, TalkerContext
from ..model import Qwen3OmniMoeCode2Wav, Qwen3OmniMoeTalkerForConditionalGeneration
from ..modeling.steps import compiles_ahead, launch_sizes
from .blocks import BlockPool
from .kv_pool import KVPool
from .plan import Facts, Job, Speech
from .ring import Channel
from .scheduler import Scheduler
from .speech import SpeechStage


class SpeechWorker:
    """remote_ids: ids of the engine by those of the scheduler here; local_ids: the other way round; errors: of speeches that have failed,
    until all of their sound is sent.
    """

    def __init__(self, channel: Channel, settings: dict[str, Any], tts_embeds: Any) -> None:
        runtime.choose_device(settings["target"], settings["device"])
        classes = {"talker": Qwen3OmniMoeTalkerForConditionalGeneration, "code2wav": Qwen3OmniMoeCode2Wav}
        parts = {}
        for name, options in settings["parts"].items():
            folder, options = options["folder"], {key: value for key, value in options.items() if key != "folder"}
            options |= {"mindspore_dtype": settings["dtype"], "progress": False, "parallel": None}
            parts[name] = classes[name].from_pretrained(folder, **options)
        blocks = settings["blocks"]
        self.channel, self.remote_ids, self.local_ids, self.errors = channel, {}, {}, {}
        pool = KVPool.of(parts["talker"].model, blocks, dtype=settings["kv_cache_dtype"])
        self.stage = SpeechStage(
            **parts, tts_embeds=tts_embeds, pool=pool, compile_after=settings["compile_after"], rows=settings["max_rows"]
        )
        if compiles_ahead(settings["compile_after"]):
            for size in launch_sizes(settings["max_rows"]):
                self.stage.warm(size)
        self.scheduler = Scheduler(BlockPool(1), BlockPool(blocks), settings["max_rows"])

    def handle(self, header: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Does what a message asks for."""
        if header["kind"] == "context":
            self._start(header, arrays)
        elif header["id"] not in self.local_ids:
            return
        elif header["kind"] == "text":
            self._append_text(self.local_ids[header["id"]], arrays["embeds"], header["ended"])
        else:
            self.scheduler.cancel(self._forget(self.local_ids[header["id"]]))

    def _start(self, header, arrays):
        params = SpeechParams.from_dict(header["params"])
        limit, pieces = params.talker.max_new_tokens, params.chunk_frames
        id = self.scheduler.add(Job(0, 0, speech=Speech(arrays["positions"].shape[1], limit, pieces, named=params.named)))
        self.remote_ids[id], self.local_ids[header["id"]] = header["id"], id
        self.stage.begin(id, params, header["row"], self.scheduler.rows[id].job.spoken.limit)
        states = {name: arrays.get(name) for name in ("text", "media", "is_media", "positions")}
        self.stage.set_prompt(id, TalkerContext(**states, following=header["following"]))

    def _append_text(self, id, embeds, ended):
        new = len(embeds) - (0 if self.stage.sequences[id].embeds else ROLE_ROWS)
        self.stage.append_text(id, embeds, ended)
        self.scheduler.add_text(id, new, ended)

    def tick(self) -> bool:
        """Says whether there was anything to do."""
        plan = self.scheduler.plan()
        self.stage.apply_blocks(plan)
        output = self.stage.execute(plan)
        for id, pcm, codes in output.sounds:
            self.channel.send({"kind": "sound", "id": self.remote_ids[id]}, pcm=pcm, codes=codes)
        self.errors |= output.failed
        for id in self.scheduler.done(plan, Facts(speech_ended=frozenset(output.ended))):
            self._end(id, self.errors.get(id))
        return bool(plan)

    def _end(self, id, error):
        message = {"kind": "ended", "id": self.remote_ids[id]}
        if error is not None:
            why = str(error) if isinstance(error, OmniError) else f"{type(error).__name__}: {error}"
            message |= {"kind": "failed", "why": why}
        self.channel.send(message)
        self._forget(id)

    def _forget(self, id):
        del self.local_ids[self.remote_ids.pop(id)]
        self.errors.pop(id, None)
        return id
