"""Visual Server: images become embeddings, which Model Backends read from the image cache.

process.py       sockets and the main loop
encode_queue.py  what is to be encoded, and which requests wait for it
encode_items.py  images -> files of embeddings, each failing alone
encoder.py       what a model's vision encoder looks like from here
vision_encoder.py  the one of the served checkpoint
encoder_rank.py    one rank of it, on its device
other_ranks.py     the ranks of a tensor parallel encoder, each a process
"""
