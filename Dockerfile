# lightllm for NVIDIA GPUs; runs on a CPU as well (without --gpus).
#   docker build -t lightllm .
#   docker run --gpus all -p 8080:8080 --shm-size 1g -v /path/to/models:/data lightllm --model_dir /data/my-model
# The CUDA libraries come with torch's wheel; the base image adds what the driver looks for.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${CUDA_IMAGE}

# Triton compiles its launchers on first use: it needs a C compiler and Python's headers.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv gcc libc6-dev ca-certificates \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/lightllm \
    PATH=/opt/lightllm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv "$VIRTUAL_ENV"

WORKDIR /src
COPY requirements.txt ./
RUN pip install -r requirements.txt
COPY setup.py pyproject.toml README.md LICENSE ./
COPY lightllm ./lightllm
RUN pip install --no-deps --no-build-isolation .

# Ubuntu's image has a user "ubuntu" with the id 1000, the id that most people's files have.
RUN install -d -o ubuntu -g ubuntu /data /home/ubuntu/.cache
USER ubuntu
WORKDIR /home/ubuntu
ENV HF_HOME=/data/huggingface

EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=10s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8080/health', timeout=8)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "lightllm.server.api_server", "--host", "0.0.0.0", "--port", "8080"]
