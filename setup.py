"""Packaging of lightllm. Ranges here; the exact versions that are tested are in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
version = re.search(r'^__version__ = "(.+)"$', (here / "lightllm/__init__.py").read_text(), re.MULTILINE)
if version is None:
    raise SystemExit("lightllm/__init__.py names no __version__")

BENCH = ["matplotlib>=3.9"]
CLUSTER = ["aiohttp>=3.12,<4"]
CHAT = ["prompt_toolkit>=3.0.50,<4", "rich>=14"]
OTEL = ["opentelemetry-sdk>=1.30,<2", "opentelemetry-exporter-otlp-proto-http>=1.30,<2"]
# Older ones can be made to ask for gigabytes, or let JSON have spaces without end.
CONSTRAINTS = ["llguidance>=1.9,<2"]
TOKENIZERS = ["sentencepiece>=0.2", "tiktoken>=0.8"]
# An OpenMP runtime whose waiting threads yield the core (see lightllm/server/environment.py), and the compiler of ops/cpu/.
CPU = [
    'intel-openmp>=2024.2,<2025; sys_platform == "linux" and platform_machine == "x86_64"',
    "numba>=0.68,<0.69",
    "llvmlite>=0.50,<0.51",
]
# Older versions of Pillow have known faults; httpcore2 comes with huggingface_hub.
VISION = ["httpcore2>=2.16,<3", "pillow>=12"]
TEST = [
    *BENCH,
    *CHAT,
    *CLUSTER,
    *CONSTRAINTS,
    *CPU,
    *OTEL,
    *TOKENIZERS,
    *VISION,
    "httpx>=0.27",
    "hypothesis>=6.100",
    "jsonschema-rs>=0.20",
    "mypy>=1.13",
    "openai>=1.50",
    "psutil>=6",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "schemathesis>=4",
]

setup(
    name="lightllm",
    version=version.group(1),
    description="A lightweight LLM inference and serving framework in pure Python with Triton kernels",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["lightllm", "lightllm.*"]),
    package_data={"lightllm": ["demo/*", "httpserver/page/*", "ops/triton/configs/*.json"]},
    entry_points={"console_scripts": ["lightllm=lightllm.cli.main:main"]},
    install_requires=[
        "torch>=2.11,<2.14",
        "triton>=3.6,<3.8",
        "numpy>=2,<2.4",
        "transformers>=5,<6",
        "safetensors>=0.5",
        "tokenizers>=0.22",
        "huggingface_hub>=1",
        "fastapi>=0.115",
        "uvicorn>=0.32",
        "httptools>=0.6",
        "uvloop>=0.21",
        "pydantic>=2.9",
        "msgspec>=0.20",
        "pyzmq>=26",
        "rpyc>=6,<7",
        "prometheus_client>=0.21",
        "jinja2>=3.1",
        "setproctitle>=1.3",
        "tqdm>=4.66",
        "pyyaml>=6",
    ],
    extras_require={
        "bench": BENCH,
        "chat": CHAT,
        "cluster": CLUSTER,
        "constraints": CONSTRAINTS,
        "cpu": CPU,
        "docs": [],
        "otel": OTEL,
        "test": TEST,
        "tokenizers": TOKENIZERS,
        "vision": VISION,
    },
)
