"""Conversations over a socket, `/v1/realtime`: OpenAI's Realtime API with sound both ways.

route.py      who may open a socket, and what is read from and written to it
session.py    what each event of a client does; response.py: an answer as events; items.py: what was said so far
settings.py   a session's settings; beta.py: their older spellings; events.py: events of clients
sound.py      formats and the buffer of what is heard; vad.py: when somebody speaks
"""
