"""The model behind the OpenAI API: chat with sound, speech, transcriptions, realtime conversations, and a page to try them."""
