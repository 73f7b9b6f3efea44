"""What a model folder says about itself, read once for models, server, tokenizer and templates. Loads no torch.

location         from `--model_dir` to a folder: the demo model, a local folder, a download
config           config.json, the language model's part of it over the outer keys; vocabulary, EOS ids
lengths          context length, and the longest request that is served
generation       sampling defaults of generation_config.json
chat_templates   which chat template counts, and which is overruled
json_files       JSON objects, with errors that name the file
"""
