"""Detokenizer: token ids from the Router become text for the Http Servers; the authority on stop strings.

process.py       sockets and the main loop
detokenizer.py   all streams: messages in, messages out
stream.py        one choice of one request
stop_strings.py  finding stop strings in text that arrives piece by piece
"""
