"""Packaging of lightllm. Ranges here; the exact versions that are tested are in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

version = re.search(r'__version__ = "(.+)"', Path("lightllm/__init__.py").read_text()).group(1)

setup(
    name="lightllm",
    version=version,
    description="A lightweight LLM inference and serving framework in pure Python with Triton kernels",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["lightllm", "lightllm.*"]),
    package_data={"lightllm": ["demo/*"]},
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
        "msgspec>=0.19",
        "pyzmq>=26",
        "rpyc>=6,<7",
        "prometheus_client>=0.21",
        "jinja2>=3.1",
        "setproctitle>=1.3",
        "tqdm>=4.66",
        "pyyaml>=6",
    ],
)
