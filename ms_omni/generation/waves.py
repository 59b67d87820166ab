"""From codec frames to sound: the vocoder is fed in small pieces first, so that one hears something early."""

import numpy as np

from ..errors import InputError
from ..modeling.packing import host_array
from ..outputs import AudioChunk
from .sampling import not_finite

SAMPLE_RATE_HZ = 24_000
CHUNK_FRAMES = (4, 8, 16, 25)
"""Frames per chunk: the first sound after 4 frames (0.32 s of speech), then larger ones, 25 (2 s) from the fourth on."""


class AudioChunker:
    """Collects frames and decodes them chunk by chunk; spoken int64 `[B]` counts the frames of each row so far."""

    def __init__(self, code2wav, batch_size, chunk_frames=CHUNK_FRAMES):
        self.code2wav = code2wav
        self.stream = code2wav.stream()
        self.chunk_frames = chunk_frames
        self.pending = []
        self.chunks = self.samples = 0
        self.spoken = np.zeros(batch_size, np.int64)

    def push(self, frame):
        """Takes a `CodecFrame`; returns an `AudioChunk` when enough frames are there, else None."""
        self.pending.append(frame)
        wanted = self.chunk_frames[min(self.chunks, len(self.chunk_frames) - 1)]
        return self.flush() if len(self.pending) >= wanted else None

    def flush(self):
        """Decodes what is left; returns an `AudioChunk`, or None when there is nothing."""
        if not self.pending:
            return None
        codes = np.stack([np.where(f.active[:, None], f.codes, 0) for f in self.pending], axis=-1)  # [B, Q, n]
        self.spoken += np.sum([f.active for f in self.pending], axis=0)
        self.pending = []
        pcm = host_array(self.stream.step(codes))[:, 0]
        if not np.isfinite(pcm).all():
            raise InputError(not_finite("vocoder's samples"))
        # A row that has ended owns the samples that its own frames complete and none of the later ones.
        own = np.array([self.code2wav.num_samples(int(n)) for n in self.spoken]) - self.samples
        chunk = AudioChunk(self.samples, pcm, np.clip(own, 0, pcm.shape[1]))
        self.chunks, self.samples = self.chunks + 1, self.samples + pcm.shape[1]
        return chunk
