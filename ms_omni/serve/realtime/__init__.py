"""Conversations over a socket, `/v1/realtime`: OpenAI's Realtime API with sound both ways.

route.py        who may open a socket, and how it is read and written
session.py      what each event of a client does; input_audio.py: those of its microphone; response.py: an answer as events
requests.py     from a conversation to the engine: prompts, drafts, reading ahead, transcriptions
items.py        the conversation; audio.py: formats, the input buffer, and when somebody speaks
settings.py     of a session; events.py: what clients send
"""
