"""Coloured shapes on plain grounds, at rest and moving, drawn with PIL."""

import colorsys
import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .world import COLOURS, DIRECTIONS, SHAPES

SUPERSAMPLING = 2
STAR_INNER = 0.45  # inner radius of a star's corners by the outer
MIN_RADIUS, MAX_RADIUS = 0.13, 0.42  # of the shorter side


def draw_shape(
    size: tuple[int, int],
    ground: tuple,
    colour: tuple,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    turn: float = 0.0,
) -> Image.Image:
    """A picture `(width, height)` with one shape: centre and radius in pixels, `turn` in radians."""
    scale = SUPERSAMPLING
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), ground)
    x, y, r = centre[0] * scale, centre[1] * scale, radius * scale
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    else:
        draw.polygon([(x + r * px, y + r * py) for px, py in _corners(shape, turn)], fill=colour)
    return image.resize(size, Image.Resampling.BOX)


def _corners(shape: str, turn: float) -> list[tuple[float, float]]:
    """Corners on or within the unit circle."""
    count = {"square": 4, "triangle": 3, "star": 10}[shape]
    first = -math.pi / 4 if shape == "square" else -math.pi / 2
    angles = (first + turn + 2 * math.pi * index / count for index in range(count))
    radii = (STAR_INNER if shape == "star" and index % 2 else 1.0 for index in range(count))
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles)]


def shade(rng: random.Random, colour: str, variety: float = 1.0) -> tuple[int, int, int]:
    """One of the shades that bear this name; `variety` 0 is the middle one."""

    def pick(low, high):
        middle = (low + high) / 2
        return middle + (rng.uniform(low, high) - middle) * variety

    hue, saturation, value = (pick(*limits) for limits in COLOURS[colour])
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))


def ground(rng: random.Random, variety: float = 1.0) -> tuple[int, int, int]:
    """White, black, grey, or a pale or dark tint."""
    chance = rng.random()
    if rng.random() > variety or chance < 0.25:
        return (255, 255, 255)
    if chance < 0.4:
        return (rng.randrange(0, 25),) * 3
    if chance < 0.7:
        return (rng.choice((rng.randrange(25, 100), rng.randrange(160, 256))),) * 3
    dark = rng.random() < 0.3
    tint = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.08, 0.3) if dark else rng.uniform(0.75, 1))
    return tuple(round(255 * part) for part in tint)


def _finish(rng: random.Random, image: Image.Image, variety: float) -> np.ndarray:
    """A little blur and noise, as scaled and compressed pictures have: uint8 `[H, W, 3]`."""
    if rng.random() < 0.3 * variety:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    pixels = np.asarray(image)
    if rng.random() < 0.3 * variety:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 10), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return pixels


def picture(rng: random.Random, size: tuple[int, int], variety: float = 1.0) -> tuple[np.ndarray, str, str]:
    """A shape of any colour, place and size: uint8 `[H, W, 3]`, colour, shape.

    `variety` from 0 (centred, one size, plain) to 1 is the curriculum of the training.
    """
    width, height = size
    short = min(size)
    colour, shape = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
    middle = 0.27
    radius = short * (middle + variety * (rng.uniform(MIN_RADIUS, MAX_RADIUS) - middle))
    x, y = (side / 2 + variety * rng.uniform(-1, 1) * max(0.0, side / 2 - radius) for side in (width, height))
    turn = variety * rng.uniform(-0.15, 0.15)
    image = draw_shape(size, ground(rng, variety), shade(rng, colour, variety), shape, (x, y), radius, turn)
    return _finish(rng, image, variety), colour, shape


def moving(rng: random.Random, size: tuple[int, int], count: int, variety: float = 1.0):
    """A shape that moves straight: uint8 frames `[count, H, W, 3]`, colour, shape, direction."""
    short = min(size)
    colour, shape, direction = rng.choice(tuple(COLOURS)), rng.choice(SHAPES), rng.choice(tuple(DIRECTIONS))
    step = DIRECTIONS[direction]
    radius = short * (0.17 + variety * (rng.uniform(MIN_RADIUS, 0.28) - 0.17))
    room = [side / 2 - radius for side in size]  # how far the centre may go from the middle
    axis = 0 if step[0] else 1
    reach = room[axis] * rng.uniform(1 - 0.45 * variety, 1)  # half of the way
    offset = [variety * rng.uniform(-1, 1) * free for free in room]
    offset[axis] = variety * rng.uniform(-1, 1) * (room[axis] - reach)
    paint, behind, turn = shade(rng, colour, variety), ground(rng, variety), variety * rng.uniform(-0.1, 0.1)
    frames = []
    for index in range(count):
        way = reach * (2 * index / (count - 1) - 1)
        centre = [side / 2 + off + way * part for side, off, part in zip(size, offset, step)]
        frames.append(draw_shape(size, behind, paint, shape, centre, radius, turn))
    seed = rng.getrandbits(32)
    return np.stack([_finish(random.Random(seed), frame, variety) for frame in frames]), colour, shape, direction


def nothing(rng: random.Random, size: tuple[int, int]) -> np.ndarray:
    """A picture outside the world: an empty ground, noise, stripes, a gradient or many lines: uint8 `[H, W, 3]`."""
    width, height = size
    numbers = np.random.default_rng(rng.getrandbits(32))
    kind = rng.randrange(6)
    if kind == 0:
        return np.full((height, width, 3), ground(rng), np.uint8)
    if kind == 1:
        cell = rng.choice((1, 2, 4, 8, 16))
        cells = numbers.integers(0, 256, (-(-height // cell), -(-width // cell), 3), dtype=np.uint8)
        return cells.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    first, second = (np.array([rng.randrange(256) for _ in range(3)]) for _ in range(2))
    rows, columns = np.mgrid[:height, :width]
    if kind == 2:
        period = rng.uniform(4, 40)
        angle = rng.uniform(0, math.pi)
        mix = (np.sin((columns * math.cos(angle) + rows * math.sin(angle)) * 2 * math.pi / period) > 0)[..., None]
    elif kind == 3:
        angle = rng.uniform(0, 2 * math.pi)
        slope = columns / width * math.cos(angle) + rows / height * math.sin(angle)
        mix = ((slope - slope.min()) / (slope.max() - slope.min()))[..., None]
    else:
        return _clutter(rng, size)
    return (first * mix + second * (1 - mix)).astype(np.uint8)


def _clutter(rng: random.Random, size: tuple[int, int]) -> np.ndarray:
    """Many lines and blots of all colours, as a drawing of a scene may have."""
    width, height = size
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(5, 20)):
        box = [rng.uniform(-0.2, 1.2) * side for side in (width, height)] + [
            rng.uniform(-0.2, 1.2) * side for side in (width, height)
        ]
        colour = tuple(rng.randrange(256) for _ in range(3))
        if rng.random() < 0.5:
            draw.line(box, fill=colour, width=rng.randint(1, 8))
        else:
            corners = (*sorted(box[0::2]), *sorted(box[1::2]))
            draw.rectangle((corners[0], corners[2], corners[1], corners[3]), fill=colour)
    return np.asarray(image)
