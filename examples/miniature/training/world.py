"""The miniature's world: what it can see and hear, how it is asked, and how it answers."""

import random

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # steps in x (to the right), y (down)
COLOURS = {  # ranges of hue (degrees), saturation and value (0..1)
    "red": ((-10, 6), (0.75, 1.0), (0.6, 1.0)),
    "orange": ((20, 39), (0.8, 1.0), (0.88, 1.0)),
    "yellow": ((50, 63), (0.75, 1.0), (0.85, 1.0)),
    "green": ((92, 150), (0.6, 1.0), (0.4, 1.0)),
    "blue": ((205, 246), (0.65, 1.0), (0.5, 1.0)),
    "purple": ((268, 304), (0.6, 1.0), (0.45, 1.0)),
}
UNKNOWN = "I do not know"
MAX_DIGITS = 4

QUESTIONS = {
    "hear": (
        "What number do you hear?",
        "Which number is spoken?",
        "What do you hear?",
        "What is said?",
        "Which digits do you hear?",
        "Write down the number.",
        "Transcribe the speech.",
        "Listen. What is the number?",
        "Tell me the number that you hear.",
        "What are the digits?",
    ),
    "see": (
        "What do you see?",
        "What is in the picture?",
        "Describe the picture.",
        "What is this?",
        "What does the picture show?",
        "Look. What is it?",
        "Tell me what you see.",
        "What is shown here?",
        "Name the shape and its colour.",
        "Which shape is it, and in what colour?",
    ),
    "colour": (
        "What colour is it?",
        "Which colour do you see?",
        "What is the colour of the shape?",
        "Name the colour.",
        "What color is it?",
        "Tell me the colour.",
    ),
    "shape": ("What shape is it?", "Which shape do you see?", "Name the shape.", "Tell me the shape."),
    "two": (
        "What is in the two pictures?",
        "What do you see in these pictures?",
        "Describe both pictures.",
        "What do the two pictures show?",
        "Name both shapes.",
        "What are these?",
    ),
    "move": (
        "Where does it go?",
        "Which way does it move?",
        "In which direction does the shape move?",
        "Where does it move?",
        "What is the direction?",
        "Tell me where the shape goes.",
        "Which way does the shape go?",
        "Where does the shape move?",
    ),
    "moving": ("What moves?", "What do you see in the video?", "Which shape moves?", "What is moving?"),
    "move_hear": (
        "Where does it go, and what number do you hear?",
        "Which way does it move, and which number is spoken?",
        "Tell me the direction and the number.",
        "Where does the shape move, and what is said?",
    ),
    "see_hear": (
        "What do you see and hear?",
        "What do you see, and what number do you hear?",
        "Which shape is it, and which number is spoken?",
        "Tell me what you see and hear.",
    ),
    "sum": (
        "What is {a} plus {b}?",
        "{a} + {b}",
        "{a}+{b}=?",
        "How much is {a} + {b}?",
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "What is {a} + {b}?",
        "{a} + {b} = ?",
        "How much is {a} plus {b}?",
    ),
    "sum_words": ("What is {a} plus {b}?", "{a} plus {b}", "How much is {a} plus {b}?", "Add {a} and {b}."),
    "hear_sum": ("What is the sum?", "How much is that?", "Add the numbers.", "What is the result?"),
    "repeat": (
        "Say {text}.",
        "Repeat {text}",
        "Say {text}",
        "Repeat this: {text}",
        "Say: {text}",
        "Read {text} aloud.",
        "Please say {text}.",
    ),
}
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are Qwen.", "Answer briefly.", "Be helpful.")


def phrase(colour: str, shape: str) -> str:
    """How the miniature names a shape: "an orange star"."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def question(rng: random.Random, kind: str, **values) -> str:
    """A question of this kind, sometimes written without care."""
    return careless(rng, rng.choice(QUESTIONS[kind]).format(**values))


def careless(rng: random.Random, text: str) -> str:
    """The same text, in a third of the cases without its final mark, in lower case, or with "please"."""
    chance = rng.random()
    if chance < 0.1:
        return text.rstrip("?.")
    if chance < 0.2:
        return text[0].lower() + text[1:]
    if chance < 0.26:
        return f"Please: {text}" if rng.random() < 0.5 else f"{text} Please."
    if chance < 0.3:
        return text.lower()
    return text


def digit_string(rng: random.Random, longest: int = MAX_DIGITS) -> str:
    """1 to `longest` digits, longer ones more often."""
    count = rng.choices(range(1, longest + 1), weights=range(1, longest + 1))[0]
    return "".join(str(rng.randrange(10)) for _ in range(count))


def sayable(rng: random.Random) -> str:
    """A text out of the words that the miniature can speak."""
    kind = rng.randrange(6)
    if kind <= 2:
        return digit_string(rng)
    if kind == 3:
        return phrase(rng.choice(tuple(COLOURS)), rng.choice(SHAPES))
    if kind == 4:
        return rng.choice((*DIRECTIONS, *COLOURS, *SHAPES, UNKNOWN))
    return f"{rng.choice((*DIRECTIONS, phrase(rng.choice(tuple(COLOURS)), rng.choice(SHAPES))))} and {digit_string(rng)}"
