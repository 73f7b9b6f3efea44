"""The table of docs/models.md: what a model folder can state twice, which statement counts, where that is tested."""

from __future__ import annotations

FORMATS = "test/quantization/test_module_choice.py"
CONFIGS = "test/models/test_contradicting_configs.py"
FILES = "test/weights/test_contradicting_files.py"
HEAD = "test/models/test_tied_head.py"
TOKENIZER = "test/tokenizer/test_overruled.py"

RULES = [
    # fact, what counts, what happens to the rest, test
    ("output head: `tie_word_embeddings` (or the architecture's default) and `lm_head.weight`",
     "the tensor, where it differs from the embedding; a tied matrix may have either name", "said", HEAD),
    ("`tie_word_embeddings` false (or absent, default false) and no `lm_head.weight`", "", "refused", HEAD),
    ("safetensors, .bin, Mistral's `consolidated*`", "safetensors; `consolidated*` never", "said (INFO)", FILES),
    ("`model.safetensors` (or `pytorch_model.bin`) and an index with shards", "the single file", "said (INFO)", FILES),
    ("shards without an index", "all, if the set is whole", "two sets, or a missing part: refused", FILES),
    ("index and files: a file is missing", "", "refused", "test/weights/test_loading.py"),
    ("a tensor in several files", "the one that the index names; without an index they must be equal",
     "said; different without an index: refused", FILES),
    ("a tensor that the index puts elsewhere, or does not name", "the file that holds it", "said", FILES),
    ("tensors and shape: other sizes (vocabulary against embedding rows), layers beyond `num_hidden_layers`, a bias without "
     "`attention_bias`, a missing tensor", "", "refused", FILES),
    ("`quantization_config`, its lists of modules, and how each module's weight is kept", "how it is kept",
     "few bits without `quantization_config`, or in another form than it says: refused", f"{FORMATS}, {FILES}"),
    ("dtype: `dtype`, `torch_dtype`, the tensors'", "`--data_type`, `dtype`, `torch_dtype`, the first floating tensor's",
     "said, but for the tensors'", f"{CONFIGS}, {FILES}"),
    ("`architectures` and `model_type`", "`model_type`, if it is supported; `architectures`, if transformers does not know it either",
     "said; a `model_type` of another model of transformers: refused", CONFIGS),
    ("`text_config` and the keys beside it", "`text_config`", "said", CONFIGS),
    ("`rope_scaling` and `rope_parameters`", "`rope_scaling`, if it holds anything", "said", CONFIGS),
    ("`rope_theta`, `partial_rotary_factor` inside of it and beside it", "inside", "said", CONFIGS),
    ("`original_max_position_embeddings` inside and beside", "beside (for Phi-3 its default too)", "said", CONFIGS),
    ("`rope_type` and `type`", "`rope_type`", "said", CONFIGS),
    ("a rope field that has no effect", "", "said; one that changes the computation (`llama_4_scaling_beta`): refused", CONFIGS),
    ("`head_dim` and `hidden_size / num_attention_heads`", "`head_dim`, else the architecture's default", "", CONFIGS),
    ("null and absent: `num_key_value_heads`, `sliding_window`, soft caps",
     "null: none (as many KV heads as heads, no window, no cap); absent: the architecture's default", "", CONFIGS),
    ("`sliding_window`, `use_sliding_window`, `max_window_layers`, `layer_types`",
     "`layer_types` where the architecture's layers differ, else one window for all",
     "a contradiction: refused; a window of an architecture without: said", CONFIGS),
    ("EOS: generation_config.json, config.json, the tokenizer's `eos_token`", "`--eos_id`, else the first that names one", "said", TOKENIZER),
    ("BOS: tokenizer.json's post-processor, `add_bos_token`; `bos_token_id` of a config", "the post-processor", "said; the id has no effect", TOKENIZER),
    ("padding", "nothing is padded: it has no effect", "", TOKENIZER),
    ("vocabulary of the tokenizer and `vocab_size`", "`vocab_size`", "said; a prompt with a token beyond it: 400", f"{TOKENIZER}, test/test_llm.py"),
    ("context length: several keys of config.json, its rope scaling, `model_max_length`",
     "`max_position_embeddings`, `n_positions`, ... times a linear, dynamic or yarn factor; the tokenizer's where config.json has none",
     "said, where the tokenizer's is smaller", f"{TOKENIZER}, test/model_folder/test_model_folder.py"),
    ("chat template: chat_template.jinja and additional_chat_templates, tokenizer_config.json, chat_template.json",
     "`--chat_template`, else the first that there is", "said", f"{TOKENIZER}, test/tokenizer/test_chat_template.py"),
    ("sampling defaults: generation_config.json, config.json", "generation_config.json", "said", TOKENIZER),
    ("sizes that no model has, weights beyond the memory, replacements in tokenizer.json that multiply a text", "",
     "refused before memory is taken", f"{CONFIGS}, {FILES}, test/tokenizer/test_replacements.py"),
]  # fmt: skip
