"""Conversations over a socket, `/v1/realtime`: OpenAI's Realtime API with sound both ways.

route.py      who may open a socket, and what is read from and written to it
session.py    what each event of a client does; listening.py: those of its microphone; response.py: an answer as events
asking.py     from a conversation to the engine; ahead.py: while somebody speaks; transcribing.py: what he said as text
items.py      what was said so far; sound.py: formats, and the buffer of what is heard; vad.py: when somebody speaks
settings.py   of a session; events.py: of clients; beta.py: the older spellings of both
"""
