from tokenizers import pre_tokenizers

from lightllm.tokenizer import pieces


def test_byte_level_pieces_are_the_bytes_of_the_text_that_the_library_cuts() -> None:
    table, cut = pieces.byte_level_table(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for number in [*range(0x1800), 0x4E16, 0x1F642]:
        text = chr(number)
        (piece, _) = cut.pre_tokenize_str(text)[0]
        assert pieces.byte_level(piece, table) == text.encode()


def test_added_tokens_outside_the_byte_level_alphabet_stand_for_themselves() -> None:
    table = pieces.byte_level_table()
    for text in ["<tool call>", "é è", "\n", "世", "\x7f", "a\xadb", "\u0144"]:
        assert pieces.byte_level(text, table) == text.encode()
