"""A chat in the terminal: `lightllm chat`.

command.py       options; which talker, which view
session.py       one chat: lines in, commands and messages
conversation.py  the messages so far; save and load
attachments.py   images that a message names
talkers.py       who answers: a running server, or a model in this process
terminal.py      the view of a terminal: prompt_toolkit and rich (extra `chat`)
markdown.py      an answer that is rendered while it streams
plain.py         the view of a pipe, and of a terminal without these packages
"""
