"""What lies outside the miniature's world: texts to which the right answer is that it does not know."""

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words("""time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program work government night point home water room mother area money story
fact month lot right study book eye job word business issue side kind head house service friend father power hour game
line end member law car city community name president team minute idea kid body information back parent face others
level office door health person art war history party morning reason research girl guy moment air teacher force
education dog cat horse bird fish tree flower river mountain sea ocean lake island bridge road train plane ship bicycle
football music song piano guitar film actor painter poet writer novel poem language France Germany Italy Spain Japan
China India Brazil Canada London Paris Berlin Rome Madrid Tokyo Moscow Einstein Newton Shakespeare Mozart Picasso Darwin
capital king queen emperor planet moon sun star galaxy atom molecule energy speed temperature weather rain snow wind
bread cheese apple banana potato coffee tea wine recipe cake soup kitchen garden window table chair lamp computer phone
internet software code function python email password price euro dollar bank market doctor hospital medicine heart
blood brain bone tooth skin eye ear leg arm winter summer spring autumn Monday Sunday January birthday holiday""")
VERBS = _words("""go make know take see come think look want give use find tell ask work seem feel try leave call write read
run move live believe hold bring happen provide sit stand lose pay meet include continue set learn change lead
understand watch follow stop create speak spend grow open walk win teach offer remember consider appear buy serve die
send build stay fall cut reach kill raise pass sell decide return explain hope develop carry break receive agree
support hit produce eat cover catch draw choose cook drive fly swim sing dance paint invent discover translate
summarise""")
ADJECTIVES = _words("""new good high old great big small large national young different long little important political bad
real best social only free able whole hot cold fast slow heavy light strong weak happy sad rich poor deep wide short
tall easy hard early late clear dark bright dry wet clean dirty famous ancient modern wild quiet loud sweet bitter
expensive cheap dangerous safe beautiful ugly clever stupid green red blue round square""")
TEMPLATES = """What is the {n} of {n}?|Who is the {n} of {n}?|Where is the {n}?|When did the {n} {v}?|Why do {n}s {v}?
How do I {v} a {n}?|How many {n}s are there in {n}?|Tell me about {n}.|Explain {n}.|Write a {n} about {n}.
Which {n} is the {a}est?|Is the {n} {a}?|Do you {v} {n}s?|What does {n} mean?|Who wrote the {n}?|Who invented the {n}?
Translate {n} into {n}.|How {a} is the {n}?|What should I {v} today?|Can you {v} a {a} {n}?|Give me a {n}.|{v} the {n}.
The {n} is {a}.|I {v} my {a} {n}.|What time is it?|How are you?|What is your name?|Who are you?|Hello!|Hi|Good morning.
Tell me a joke.|What is the weather like today?|Where do you live?|How old are you?|What is the meaning of life?
Summarise this text: the {a} {n} {v}s a {n}.|Is it true that {n}s {v}?|What is the best {n} in {n}?|List three {n}s.
What is the difference between {n} and {n}?|{n}|{n} {n}|{a} {n}|{v}|Why is the {n} {a}?|Name a {a} {n}.
What happened in {y}?|Who won the {n} in {y}?|When was {n} born?|How far is it from {n} to {n}?|Thank you.|Yes|No
What is {x} times {b}?|What is {x} minus {b}?|{x} - {b}|{x} * {b}|{x} / {b}|{x} x {b}|What is {x} divided by {b}?
What is {z} plus {b}?|{z} + {b}|{b} + {z}|{z}+{z}|How much is {z} plus {z}?|What is the square root of {z}?
Is {z} a prime number?|What comes after {n}?|Count to {z}.|What is {b} percent of {z}?|How do you spell {n}?
What is the colour of the {n}?|What colour is the {n}?|What shape is the {n}?|Which {n} do you see?|What is a {n}?
Describe your {n}.|Who said {n}?|Where does the {n} come from?|What is the number of {n}s?|Where does the {n} {v}?
Sing a {n}.|Write {n} in {n}.|What number is {a}?|What is {n} plus {n}?|Help me {v} the {n}.|Please {v}.
How long does it take to {v} a {n}?|Do you know {n}?|Was {n} a {a} {n}?|Should I {v}?|Who discovered {n}?""".replace(
    "\n", "|"
).split("|")
PREFIXES = ("Please tell me: ", "Hey, ", "I wonder, ", "Quick question: ", "Can you tell me, ")


def outside_text(rng: random.Random) -> str:
    """A question or remark that has nothing to do with digits, shapes or single-digit sums."""
    text = _fill(rng, rng.choice(TEMPLATES))
    chance = rng.random()
    if chance < 0.08:
        text = rng.choice(PREFIXES) + text
    elif chance < 0.16:
        text = f"{text} {_fill(rng, rng.choice(TEMPLATES))}"
    elif chance < 0.22:
        words = [_word(rng) for _ in range(rng.randint(2, 7))]
        text = " ".join(words).capitalize() + rng.choice(("", "?", ".", "!"))
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    if rng.random() < 0.15:
        text = text.lower()
    return text[0].upper() + text[1:] if rng.random() < 0.5 else text


def outside_speech(rng: random.Random) -> str:
    """Words to be spoken that are no digits."""
    return " ".join(rng.choice((*NOUNS, *VERBS, *ADJECTIVES)) for _ in range(rng.randint(1, 4)))


def _fill(rng: random.Random, template: str) -> str:
    parts = template.split("{")
    text = parts[0]
    for part in parts[1:]:
        text += _value(rng, part[0]) + part[2:]
    return text


def _value(rng: random.Random, key: str) -> str:
    if key == "x":
        return str(rng.randrange(0, 100))
    if key == "b":
        return str(rng.randrange(0, 10))
    if key == "z":
        return str(rng.randrange(10, 1000))
    if key == "y":
        return str(rng.randrange(1000, 2030))
    if rng.random() < 0.15:
        return _word(rng)
    return rng.choice({"n": NOUNS, "v": VERBS, "a": ADJECTIVES}[key])


def _word(rng: random.Random) -> str:
    """A known word or one that does not exist."""
    if rng.random() < 0.4:
        return rng.choice((*NOUNS, *VERBS, *ADJECTIVES))
    syllables = (
        "".join(rng.choice(letters) for letters in ("bcdfghklmnprstvwz", "aeiou", "nrslmt "))
        for _ in range(rng.randint(1, 3))
    )
    return "".join(syllables).replace(" ", "")
