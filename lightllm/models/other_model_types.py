"""What a config.json may call models that transformers computes and this project does not. Loads no torch."""

from __future__ import annotations

OTHER_MODEL_TYPES = frozenset(
    """
    afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba bart beam bert bert-generation big_bird
    bigbird_pegasus biogpt bitnet blenderbot blenderbot-small blt camembert codegen cohere2 cohere2_moe
    cohere_compass_text cpmant ctrl cwm data2vec-text dbrx deepseek_v32 deepseek_v4 diffllama doge dots1
    dots3_note dots3_note_text electra emu3 ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon
    falcon_h1 falcon_mamba flex_olmo flint fuyu gemma gemma3 gemma3n gemma3n_text gemma4 gemma4_assistant
    gemma4_text gemma4_unified gemma4_unified_assistant gemma4_unified_text git glm4_moe glm4_moe_lite
    glm_moe_dsa got_ocr2 gpt-sw3 gpt2 gpt_neo gpt_neox gpt_neox_japanese gptj granite_swa granitemoe
    granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe
    hy_v3 hy_v4 hyperclovax inkling2_text inkling_text internlm3 iquestcoder jais2 jamba jetmoe
    kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama4 llama4_text longcat_flash mamba mamba2 marian
    mbart megatron-bert mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral
    ministral3 mllama modernbert-decoder moshi moss_transcribe_diarize mpt musicgen musicgen_melody mvp
    nanochat nemotron nemotron_h olmo olmo3 olmo_hybrid olmoe openai-gpt opt pegasus persimmon phi
    phi4_multimodal phimoe plbart prophetnet qwen2_moe qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
    qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma reformer rembert roberta roberta-prelayernorm
    roc_bert roformer rwkv seed_oss smollm3 solar_open trocr vaultgemma whisper xglm xlm xlm-roberta
    xlm-roberta-xl xlnet xlstm xmod youtu zamba zamba2 zaya
    """.split()
)
"""`model_type` of every text model of transformers 5 that is in no line of `ARCHITECTURES`. Most differ from a supported
architecture in some computation, not in their tensors: under its name they would be served, and wrong."""

ENCODER_TYPES = frozenset(
    """
    albert bert big_bird camembert deberta deberta-v2 distilbert electra ernie eurobert gte jina_bert layoutlm longformer
    megatron-bert mobilebert modernbert mpnet new nomic_bert rembert roberta roberta-prelayernorm roc_bert squeezebert t5
    t5gemma umt5 xlm-roberta xlm-roberta-xl xmod
    """.split()
)
"""`model_type` of models whose tokens attend in both directions. "new" is that of Alibaba's gte-...-v1.5."""
