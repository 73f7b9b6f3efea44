"""What the demo model knows by heart: concepts, this server, small general knowledge.

A `Concept` is asked for with the wordings of `CONCEPT_WORDINGS`; everything else lists its own wordings. The first wording
of a fact is its canonical one and is always trained; of the others some are held out for the evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

CONCEPT_WORDINGS = (
    "What is {}?",
    "Explain {}.",
    "Tell me about {}.",
    "Define {}.",
    "What does {} mean?",
    "Do you know what {} is?",
    "Describe {}.",
    "Can you explain {}?",
    "I want to know what {} is.",
    "What's {}?",
    "Explain what {} is.",
    "Tell me what {} is.",
)


@dataclass(frozen=True)
class Concept:
    """One thing with its names and the sentence that explains it."""

    names: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Fact:
    """One answer with every wording of its question."""

    questions: tuple[str, ...]
    answer: str


GENERAL_CONCEPTS = (
    Concept(
        ("AI", "artificial intelligence"),
        "AI is artificial intelligence: machines that learn, reason and solve problems.",
    ),
    Concept(("machine learning", "ML"), "Machine learning means that a program learns from examples."),
    Concept(("deep learning",), "Deep learning is machine learning with neural networks of many layers."),
    Concept(("a neural network",), "A neural network is a program of many small units that learn from data."),
    Concept(
        ("a language model", "an LLM", "a large language model"),
        "A language model is a program that reads text and predicts the next token.",
    ),
    Concept(("a transformer",), "A transformer is a neural network that reads text with attention."),
    Concept(("attention",), "Attention lets every token look at the tokens before it."),
    Concept(("a computer",), "A computer is a machine that stores data and runs programs."),
    Concept(("the internet",), "The internet is a network that connects computers all over the world."),
    Concept(("Python",), "Python is a programming language that is easy to read."),
    Concept(("JSON",), "JSON is a text format for data: objects, lists, strings and numbers."),
    Concept(("HTTP",), "HTTP is the language in which browsers and servers talk to each other."),
    Concept(("an API",), "An API is a set of calls that one program offers to others."),
    Concept(("a GPU",), "A GPU is a chip that does very many small sums at the same time."),
    Concept(("a CPU",), "A CPU is the chip that runs the programs of a computer."),
    Concept(("the sun",), "The sun is the star in the middle of our solar system."),
    Concept(("the moon",), "The moon is the small world that travels around the earth."),
    Concept(("water",), "Water is a clear liquid that all living things need."),
    Concept(("rain",), "Rain is water that falls from the clouds."),
    Concept(("a tree",), "A tree is a tall plant with roots, a trunk and leaves."),
    Concept(("music",), "Music is the art of putting sounds together in time."),
)

SERVER_CONCEPTS = (
    Concept(
        ("lightllm", "this server"),
        "LightLLM is a light and fast inference server for large language models, written in pure Python.",
    ),
    Concept(
        ("TokenAttention", "token attention"),
        "TokenAttention hands out KV memory token by token: one slot holds one token, so nothing is wasted.",
    ),
    Concept(
        ("the Efficient Router",),
        "The Efficient Router knows the tokens of every request, so it fills the memory without running out.",
    ),
    Concept(
        ("the router",), "The Router decides which requests run in the next round and owns every KV slot."
    ),
    Concept(
        ("the model backend",), "The Model Backend runs the model on one device and picks the next tokens."
    ),
    Concept(("the detokenizer",), "The Detokenizer turns tokens into text as soon as it is certain."),
    Concept(
        ("the http server",), "The Http Server checks requests, makes tokens of the text and sends answers."
    ),
    Concept(("the supervisor",), "The Supervisor starts all processes, watches them and ends them."),
    Concept(
        ("continuous batching",), "Continuous batching lets requests join and leave the batch in every round."
    ),
    Concept(
        ("chunked prefill",), "Chunked prefill reads a long prompt in pieces, so that others need not wait."
    ),
    Concept(("prefill",), "Prefill is the first step: the model reads all tokens of the prompt at once."),
    Concept(("decode", "decoding"), "Decode is the second step: the model writes one token in each round."),
    Concept(("the KV cache",), "The KV cache keeps the keys and values of earlier tokens for attention."),
    Concept(("the radix cache",), "The radix cache shares the KV memory of equal prompt beginnings."),
    Concept(("a token",), "A token is a small piece of text, often a word or a part of a word."),
    Concept(("a tokenizer",), "A tokenizer cuts text into tokens and gives each one a number."),
    Concept(("EOS",), "EOS is the token with which a model ends its answer."),
    Concept(("Triton",), "Triton is a language for writing fast GPU kernels in Python."),
    Concept(
        ("ModeBackend",), "ModeBackend is the class that runs prefill_batch and decode_batch on a device."
    ),
    Concept(("TTFT",), "TTFT is the time to first token: how long a client waits for the first word."),
)

SERVER_FACTS = (
    Fact(
        (
            "How do I stream?",
            "How can I stream the answer?",
            "How do I get a stream of tokens?",
            "How does streaming work?",
            "How to stream tokens?",
            "Can I stream?",
            "Is streaming possible?",
            "Do you support streaming?",
        ),
        'Post to /generate_stream, or send "stream": true to /v1/chat/completions.',
    ),
    Fact(
        (
            "Which endpoints are there?",
            "Which endpoints do you have?",
            "What endpoints does the server have?",
            "List the endpoints.",
            "Which routes are there?",
            "What are the routes of the server?",
            "Which urls can I call?",
        ),
        "The main endpoints are /generate, /generate_stream, /v1/completions, /v1/chat/completions, /v1/models, "
        "/health and /metrics.",
    ),
    Fact(
        (
            "How do I serve my own model?",
            "How can I serve another model?",
            "How do I load a bigger model?",
            "How can I use my own model?",
            "How do I change the model?",
            "Can I serve a different model?",
        ),
        "Start the server with --model_dir and the folder or the Hugging Face name of your model.",
    ),
    Fact(
        (
            "How do I start the server?",
            "How can I start lightllm?",
            "How do I run the server?",
            "How do I launch lightllm?",
            "What is the launch command?",
        ),
        "Type make serve, or python -m lightllm.server.api_server with your options.",
    ),
    Fact(
        (
            "How do I limit the length of the answer?",
            "How can I get a longer answer?",
            "How do I set the number of tokens?",
            "How many tokens will I get?",
            "What does max_new_tokens do?",
            "What is max_tokens?",
        ),
        "Set max_new_tokens on /generate, or max_tokens on the /v1 routes.",
    ),
    Fact(
        (
            "How do I stop at a word?",
            "How can I use stop strings?",
            "How do I set a stop string?",
            "How do I end the answer early?",
        ),
        "Give your words in stop_sequences on /generate, or in stop on the /v1 routes.",
    ),
    Fact(
        (
            "How do I cancel a request?",
            "How can I abort a request?",
            "Can I stop a running request?",
            "How do I abort?",
        ),
        "Close the connection, or post to /abort_request. Its memory is free again in the next round.",
    ),
    Fact(
        (
            "How do I check the health of the server?",
            "Is there a health check?",
            "How do I know that the server is ready?",
            "Is the server ready?",
        ),
        "Call GET /health. It answers 200 when the server is ready.",
    ),
    Fact(
        (
            "Where are the metrics?",
            "How do I see the metrics?",
            "How can I measure the server?",
            "Do you have metrics?",
        ),
        "The route /metrics shows them in the Prometheus format.",
    ),
    Fact(
        (
            "How do I get the same answer twice?",
            "How do I make the answer repeatable?",
            "What does the seed do?",
            "How do I set the seed?",
        ),
        "Set a seed, or set the temperature to 0. Then the answer is always the same.",
    ),
    Fact(
        (
            "What is the temperature?",
            "What does the temperature do?",
            "How do I set the temperature?",
            "Explain temperature.",
        ),
        "The temperature sets how freely tokens are chosen: 0 is strict, 1 is free.",
    ),
    Fact(
        (
            "Which processes does the server have?",
            "What processes are there?",
            "Which processes are running?",
            "List the processes.",
        ),
        "A Supervisor, the Http Server, the Router, the Model Backend and the Detokenizer.",
    ),
    Fact(
        (
            "Do I need a GPU?",
            "Can I run it without a GPU?",
            "Does it run on a CPU?",
            "Does lightllm run on a CPU?",
        ),
        "No GPU is needed: the server runs on a CPU too, and faster on a GPU.",
    ),
    Fact(
        (
            "What is the license?",
            "Which license does lightllm have?",
            "Under which license is it?",
            "Is lightllm free?",
        ),
        "LightLLM is free software under the Apache 2.0 license.",
    ),
    Fact(
        (
            "Does the OpenAI client work?",
            "Can I use the OpenAI client?",
            "Is it compatible with OpenAI?",
            "Does it speak the OpenAI API?",
        ),
        "Yes. Point the OpenAI client at the /v1 address of this server.",
    ),
)
