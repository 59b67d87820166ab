"""What a card can do, from configs/hardware/*.json: each number with its source and whether it is an estimate."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..config.named import config_folder
from ..errors import ConfigError

SCALARS = ("memory_gb", "memory_gb_per_s", "bf16_tflops", "collective_us")
BY_CARDS = ("all_gather_gb_per_s", "all_reduce_gb_per_s")


@dataclass(frozen=True)
class Hardware:
    """One card. GB are 1e9 bytes; bandwidths of collectives are bytes of the result per second, by number of cards."""

    name: str
    memory_gb: float
    memory_gb_per_s: float
    bf16_tflops: float
    collective_us: float
    all_gather_gb_per_s: dict
    all_reduce_gb_per_s: dict
    estimates: tuple

    def bandwidth(self, kind, cards):
        """Bytes per second of a collective over `cards`, by the nearest number of cards that is known and not larger."""
        table = self.all_reduce_gb_per_s if kind == "all_reduce" else self.all_gather_gb_per_s
        return 1e9 * table[max((known for known in table if known <= cards), default=min(table))]


def load_hardware(where):
    """`Hardware` from a JSON file, or by the name of one that comes along ("910b"). Raises `ConfigError`."""
    files = {path.stem: path for path in sorted((config_folder() / "hardware").glob("*.json"))}
    path = files.get(str(where), Path(where))
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"hardware is {str(where)!r}, expected a file, or one of {', '.join(files)}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    return _read(path, entries)


def _read(path, entries):
    expected = {"name", *SCALARS, *BY_CARDS}
    if not isinstance(entries, dict) or set(entries) != expected:
        found = sorted(entries) if isinstance(entries, dict) else type(entries).__name__
        raise ConfigError(f"{path} holds {found}, expected {sorted(expected)}")
    values = {"name": entries["name"]}
    for key in (*SCALARS, *BY_CARDS):
        entry = entries[key]
        if not isinstance(entry, dict) or set(entry) != {"value", "source", "estimate"}:
            raise ConfigError(f"{path}: {key} needs a value, its source, and whether it is an estimate")
        values[key] = entry["value"] if key in SCALARS else _by_cards(path, key, entry["value"])
        if not all(_positive(value) for value in (values[key].values() if key in BY_CARDS else [values[key]])):
            raise ConfigError(f"{path}: {key} is {entry['value']!r}, expected positive numbers")
    return Hardware(**values, estimates=tuple(key for key in (*SCALARS, *BY_CARDS) if entries[key]["estimate"]))


def _by_cards(path, key, table):
    if not isinstance(table, dict) or not table or not all(text.isdecimal() for text in table):
        raise ConfigError(f"{path}: {key} is {table!r}, expected bandwidths by number of cards")
    return {int(cards): value for cards, value in table.items()}


def _positive(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
