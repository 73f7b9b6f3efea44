"""Text to token ids and back, without torch or transformers: loading, chat templates, incremental decoding.

load_tokenizer(model_dir) -> Tokenizer          Http Server, Detokenizer, offline LLM
Tokenizer.stream(prompt_ids) -> TextStream      token by token into text that is certain
"""

from lightllm.tokenizer.loading import load_tokenizer
from lightllm.tokenizer.text_stream import TextStream
from lightllm.tokenizer.tokenizer import Tokenizer

__all__ = ["TextStream", "Tokenizer", "load_tokenizer"]
