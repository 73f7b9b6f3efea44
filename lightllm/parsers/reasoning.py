"""How families of models mark their reasoning."""

from __future__ import annotations

from lightllm.parsers.table import Reasoning

THINK = Reasoning(
    "think",
    ("deepseek_r1", "deepseek_v3", "deepseek_v31", "qwen3", "qwen3_thinking", "glm45", "kimi", "kimi_k2", "minimax",
     "minimax_m2", "minimax_append_think", "minimax_m2_append_think", "step3", "nano_v3", "nemotron_v3", "interns1", "intern_s1", "olmo3", "holo2", "granite_thinking"),
    "DeepSeek R1, V3.1 and later, Qwen 3, GLM-4.5 and later, Kimi K2, MiniMax, Step 3, Nemotron, Intern-S1",
    ("<think>",), ("</think>",), marks=("<think>", "</think>"), tokens=("<think>", "</think>"),
)  # fmt: skip
HUNYUAN = Reasoning(
    "hunyuan_a13b", ("hunyuan",), "Hunyuan A13B", ("<think>",), ("</think>",), answer=("<answer>", "</answer>"),
    marks=("<think>\0<answer>",),
)  # fmt: skip
ERNIE = Reasoning(
    "ernie45", (), "ERNIE 4.5 Thinking", ("<think>",), ("</think>",), answer=("<response>", "</response>"),
    marks=("<think>\0<response>",), tokens=("<think>", "</think>", "<response>", "</response>"),
)  # fmt: skip
SEED = Reasoning(
    "seed_oss", (), "Seed-OSS", ("<seed:think>",), ("</seed:think>",), marks=("seed:think",), tokens=("<seed:think>",),
)  # fmt: skip
MISTRAL = Reasoning(
    "mistral", ("magistral",), "Magistral, Mistral", ("[THINK]",), ("[/THINK]",), marks=("[THINK]",), tokens=("[THINK]", "[/THINK]"),
)  # fmt: skip
COHERE = Reasoning(
    "cohere_command", ("cohere_command3",), "Command A Reasoning", ("<|START_THINKING|>",), ("<|END_THINKING|>",),
    marks=("<|START_THINKING|>",), tokens=("<|START_THINKING|>",),
)  # fmt: skip
GRANITE = Reasoning(
    "granite", (), "Granite 3.2", ("Here is my thought process:", "Here's my thought process:"),
    ("Here is my response:", "Here's my response:"), marks=("Here is my thought process:", "Here's my thought process:"),
)  # fmt: skip
GEMMA4 = Reasoning(
    "gemma4", (), "Gemma 4", ("<|channel>thought",), ("<channel|>",), marks=("<|channel>",), tokens=("<|channel>", "<channel|>"),
)  # fmt: skip
HARMONY = Reasoning(
    "gpt_oss", ("openai_gptoss", "gptoss", "openai"), "gpt-oss", ("<|channel|>analysis<|message|>",), ("<|end|><|start|>assistant",),
    "<|channel|>final<|message|>", built_in=True,
)  # fmt: skip

REASONINGS: tuple[Reasoning, ...] = (SEED, MISTRAL, COHERE, GRANITE, GEMMA4, HUNYUAN, ERNIE, THINK, HARMONY)
"""In the order in which they are looked for."""
