# The whole workflow. Needs python3 (3.11 to 3.13) with venv, and make; everything else goes into .venv.
#
#   make serve [ARGS="..."]   the server with the demo model on 127.0.0.1:8080
#   make test                 every check, short forms
#   make env                  only the environment
#   make soak, make chaos, make test-models, make test-ranks, make test-kernels, make test-image, make test-clients, make test-quantizers, make test-page, make bench    long forms, by hand
#   make docs, make clean

PYTHON ?= python3
# Another package index for torch alone: TORCH_INDEX=URL, e.g. of the CPU builds (small, no CUDA).
TORCH_INDEX ?=
ARGS ?=
# Workers of the test run, for two cores: servers' tests wait most of their time. Files stay whole, so that what they
# share is made once, and are run in the order of test/conftest.py.
JOBS ?= 3

VENV := .venv
PY := $(VENV)/bin/python
# Modules are compiled when they are first imported: most of torch, sympy and transformers never are.
INSTALL := $(PY) -m pip --disable-pip-version-check install --no-compile
STAMP := $(VENV)/.installed
# Where the clients of `make test-clients` go.
CLIENTS ?= $(VENV)/clients
# For llama-index, which wants it before version 3.
OLDER_OPENAI := openai==2.54.0
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)

.PHONY: env serve kind test lint check types soak chaos test-models test-ranks test-kernels test-image test-clients test-quantizers test-page bench docs clean
.DEFAULT_GOAL := env

env: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("lightllm needs Python 3.11 to 3.13, this is %d.%d; name another one: make PYTHON=python3.12" % v)'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(INSTALL) --index-url $(TORCH_INDEX) $(TORCH))
	$(INSTALL) --quiet -r requirements-dev.txt
	$(INSTALL) --quiet --no-deps --no-build-isolation -e .
	@touch $@

serve: env
	$(PY) -m lightllm.server.api_server --host 127.0.0.1 --port 8080 $(ARGS)

lint: check types

check: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tools/check_layers.py
	$(PY) tools/make_docs.py --check

types: env
	$(PY) -m mypy

kind: env
	@$(PY) -m lightllm.ops.cpu_kind

# mypy takes one core for most of a minute where nothing is cached: it runs beside the tests, and reports after them.
test: kind check
	@nice $(PY) -m mypy >$(VENV)/mypy.log 2>&1 & types=$$!; trap 'kill $$types' INT TERM; \
	$(PY) -m pytest -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS); tests=$$?; \
	wait $$types; types=$$?; echo "$(PY) -m mypy"; cat $(VENV)/mypy.log; exit $$((tests || types))

soak: env
	$(PY) -m pytest -m slow --ignore test/soak/test_chaos.py test/soak test/api test/chat test/constraints test/httpserver test/router test/simulate test/end_to_end test/packaging test/server/test_images.py \
		test/server/test_narrow_surroundings.py $(ARGS)

chaos: env
	$(PY) -m pytest -s -m slow test/soak/test_chaos.py test/server/test_restart_races.py test/server/test_restarts.py test/server/test_stalled_process.py \
		test/server/test_node_restarts.py $(ARGS)

test-models: env
	$(PY) -m pytest -m slow test/models test/backend test/server/test_broken_model_folder.py test/server/test_images.py \
		test/test_llm_images.py test/server/test_image_clients.py test/server/test_image_ids.py test/server/test_image_restarts.py \
		test/server/test_vision_families.py $(ARGS)

test-ranks: env
	$(PY) -m pytest -m slow test/server test/weights $(ARGS)

test-kernels: env
	$(PY) tools/compile_kernels.py --all --write docs/kernels.json
	$(PY) tools/make_docs.py
	$(PY) -m pytest test/ops/triton test/ops/test_kernel_devices.py $(ARGS)

# The software of the GPU's machine, as far as a CPU shows it: torch's CUDA build without a driver, that Triton, that transformers.
# Its numpy is too new for Triton 3.6's interpreter, so kernels are compiled and go through Triton's front end, and none is interpreted.
IMAGE := .venv-image
IMAGE_PYTHON ?= python3.12
$(IMAGE)/.installed: requirements-image.txt tools/gpu_packages.txt
	@$(IMAGE)/bin/python -c '' 2>/dev/null || $(IMAGE_PYTHON) -m venv $(IMAGE)
	$(IMAGE)/bin/python -m pip --disable-pip-version-check install --no-compile --quiet -r requirements-image.txt -r tools/gpu_packages.txt
	@touch $@

test-image: $(IMAGE)/.installed
	cd test && PYTHONPATH=..:. TRITON_INTERPRET=0 ../$(IMAGE)/bin/python -m pytest -m "slow or not slow" ops/test_kernel_variants.py ops/triton/test_compile.py
	PYTHONPATH=.:test TRITON_INTERPRET=0 $(IMAGE)/bin/python -m pytest -m "not slow" test/backend test/distributed test/models test/benchmark/test_gpu_report.py $(ARGS)

# They stay apart from the environment: some want older versions of what it has.
test-clients: env
	$(INSTALL) --quiet --upgrade --target $(CLIENTS) --no-deps -r requirements-clients.txt
	$(INSTALL) --quiet --upgrade --target $(CLIENTS)/openai-2 --no-deps $(OLDER_OPENAI)
	$(INSTALL) --quiet --upgrade --target $(CLIENTS)/guidellm-alone --no-deps -r requirements-guidellm.txt
	$(INSTALL) --quiet --upgrade --target $(CLIENTS)/aiperf-alone --no-deps -r requirements-aiperf.txt
	LIGHTLLM_TEST_CLIENTS=$(CLIENTS) $(PY) -m pytest -m slow test/clients $(ARGS)

# The library that others read quantised checkpoints with; it stays apart from the environment.
test-quantizers: env
	$(INSTALL) --quiet --upgrade --target $(VENV)/quantizers --no-deps compressed-tensors==0.20.1 loguru==0.7.3
	LIGHTLLM_TEST_QUANTIZERS=$(VENV)/quantizers $(PY) -m pytest -m slow test/quantization/test_read_by_libraries.py $(ARGS)

# In a browser of the machine: Debian's package chromium.
test-page: env
	$(INSTALL) --quiet -r requirements-page.txt
	$(PY) -m pytest -m "slow or not slow" test/httpserver/test_page.py test/httpserver/page test/cluster/test_console.py $(ARGS)

bench: env
	$(PY) test/benchmark/serving/with_server.py $(ARGS)

docs: env
	$(PY) tools/make_docs.py

clean:
	rm -rf $(VENV) build dist benchmark-out lightllm.egg-info .mypy_cache .ruff_cache .hypothesis
	find lightllm test tools -name __pycache__ -type d -prune -exec rm -rf {} +
