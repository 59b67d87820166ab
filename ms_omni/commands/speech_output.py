"""Where speech goes: a WAV file that is valid at every moment, or raw PCM on standard output."""

import os
import sys
import wave
from pathlib import Path

import numpy as np

from ..errors import InputError

SAMPLE_RATE_HZ = 24_000


class SpeechOutput:
    """Context manager; `write` appends float32 samples. target: a path, "-" for raw PCM, or None for nowhere.

    A new file grows in place, so that it can be played while it is written and holds what was said when the program is
    stopped. A file that was there before is replaced at the end only: until then the sound goes to `NAME.partial`; when
    the program fails before anything was said, the old file stays. Raises `InputError` for a target that cannot be written.
    """

    def __init__(self, target):
        self.target = target
        self.samples = 0
        self._wave = self._writing_to = None
        if target not in (None, "-") and (Path(target).is_dir() or not Path(target).absolute().parent.is_dir()):
            raise InputError(f"cannot write speech to {target}: it must be a file in a folder that exists")

    def __enter__(self):
        if self.target not in (None, "-"):
            path = Path(self.target)
            self._writing_to = path.with_name(path.name + ".partial") if path.exists() else path
            self._file = open(self._writing_to, "w+b")
            self._wave = wave.open(self._file, "wb")
            self._wave.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", "not compressed"))
            self._flush(b"")
        return self

    def __exit__(self, error, *_):
        if self._wave is None:
            return
        self._wave.close()
        self._file.close()
        if self._writing_to == Path(self.target):
            return
        if error is not None and not self.samples:
            self._writing_to.unlink()
        else:
            os.replace(self._writing_to, self.target)

    def write(self, samples):
        """samples float32 `[n]` in [-1, 1]."""
        data = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        self.samples += len(samples)
        if self.target == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif self._wave is not None:
            self._flush(data)

    def _flush(self, data):
        self._wave.writeframes(data)  # brings the header up to date as well
        self._file.flush()

    @property
    def seconds(self):
        return self.samples / SAMPLE_RATE_HZ

    def real_time_factor(self, end):
        """Seconds of work per second of speech, or None without speech."""
        return round(end.total_s / self.seconds, 3) if self.samples else None

    def report(self, end):
        """One line on standard error about what was said and how fast."""
        if self.target is None:
            return
        if not self.samples:
            print("nothing was said", file=sys.stderr)
            return
        print(
            f"{self.seconds:.2f} s of speech -> {self.target}; real-time factor {self.real_time_factor(end)}, "
            f"first sound after {end.first_audio_s:.2f} s",
            file=sys.stderr,
        )
