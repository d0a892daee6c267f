# What one does with a checkout. Everything here needs `make` and `python3` (3.11 to 3.13) and nothing else.

PYTHON ?= python3
CONFIG ?= deploy/config.yaml
UV_VERSION := 0.13.9
RUN := training/runs/distill.yaml
TEXT := .economizer/text/smollm2-135m
STUDENT := .economizer/variants/smollm2-135m/distilled-20
# One thread: more only slow such a small model down.
COMPRESS := OMP_NUM_THREADS=1 .venvs/compression/bin/economizer-compress
TRAIN := OMP_NUM_THREADS=1 .venvs/compression/bin/economizer-train
CHECKED_SCRIPTS := deploy/environment.py deploy/lock.py

.DEFAULT_GOAL := help
.PHONY: help setup setup-gateway run variants distill format check test test-unit test-integration test-training test-e2e bench-gateway bench-energy bench-ledger bench-training loadtest bench-savings bench-peers soak lock clean

help: ## show this
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	while IFS='|' read -r target text; do printf '  make %-18s%s\n' "$$target" "$$text"; done

setup: ## make the environments and the embedded models; takes minutes once, then milliseconds
	@$(PYTHON) deploy/environment.py

setup-gateway:
	@$(PYTHON) deploy/environment.py gateway

# exec: Ctrl-C and SIGTERM reach the gateway itself, and no shell is left between.
run: setup ## start the gateway and its engines (CONFIG=deploy/config.yaml); Ctrl-C ends it
	@exec .venv/bin/economizer up $(CONFIG)

variants: setup ## make, measure and publish the embedded model's variants (about 45 minutes; DATA=folder of public sets)
	@$(COMPRESS) build compression/families/smollm2-135m.yaml $(if $(DATA),--suite public --data $(DATA))

distill: setup $(STUDENT) ## teach a student of 20 blocks, round it, measure and publish both (about 25 minutes; DATA, RUN)
	@echo "3 of 3: rounding the student to INT8, scoring and timing both, the gate, the store: about 7 minutes"
	@$(COMPRESS) build compression/families/smollm2-135m-distilled.yaml $(if $(DATA),--suite public --data $(DATA))
	@echo "Next: make run, then a request with x-quality-min: 0.5 (docs/training.md)"

# The folders are there whole or not at all, and what lies there is not made again.
$(STUDENT): | setup $(TEXT)
	@echo "2 of 3: teaching the student, by $(RUN): about 15 minutes"
	@$(TRAIN) distill $(RUN)

$(TEXT): | setup
	@echo "1 of 3: preparing text, which the teacher answers: about a minute"
	@$(TRAIN) prepare training/runs/prepare-$(if $(DATA),public,builtin).yaml --out $@ $(if $(DATA),--data $(DATA))

format: setup-gateway ## format the code and repair what ruff can repair
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

check: setup-gateway ## formatting, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/mypy $(CHECKED_SCRIPTS)
	MYPYPATH=serve:loadtests .venv/bin/mypy $(wildcard loadtests/*.py)

test: setup ## all tests but test-training: unit, integration and end to end
	.venv/bin/python -m pytest --ignore=tests/integration/training

test-unit: setup-gateway ## tests without network, engines or models
	.venv/bin/python -m pytest tests/unit

test-integration: setup ## tests against real Ray Serve and real vLLM
	.venv/bin/python -m pytest tests/integration

test-training: setup ## tests of preparation and distillation: losses, meshes, checkpoints, Ray on a tiny model (12 minutes)
	.venvs/compression/bin/python -m pytest tests/training
	.venv/bin/python -m pytest tests/integration/training

test-e2e: setup ## tests that start Economizer as the README says and call it with the official clients
	.venv/bin/python -m pytest tests/e2e

bench-gateway: setup-gateway ## what the gateway itself costs per request and per streamed chunk
	.venv/bin/python loadtests/bench_gateway.py

bench-energy: setup ## joules attributed by the books against the meter, on a real engine (about 15 minutes)
	.venv/bin/python loadtests/bench_energy.py

bench-ledger: setup-gateway ## 1,000 bookings a second into SQLite, or URL=postgresql://...
	.venv/bin/python loadtests/bench_ledger.py $(if $(URL),--url $(URL))

bench-training: setup ## a distillation's tokens a second against the limit of its matrix products
	.venvs/compression/bin/python loadtests/bench_training.py

# Ctrl-C reaches Locust, which then writes what was measured so far.
loadtest: setup-gateway ## drive what `make run` serves with Locust (URL, USERS=8, MINUTES=5, SHAPE=steady, MIX=mixed, UI=1)
	@exec .venv/bin/locust -f loadtests/locustfile.py --host $(or $(URL),http://127.0.0.1:8000) \
		-u $(or $(USERS),8) -t $(or $(MINUTES),5)m --stop-timeout 60 --shape $(or $(SHAPE),steady) --mix $(or $(MIX),mixed) \
		$(if $(DATA),--data $(DATA)) --out $(or $(OUT),.economizer/loadtests/$$(date +%Y-%m-%dT%H-%M-%S)) \
		$(if $(UI),--web-host 127.0.0.1,--headless --only-summary) $(LOCUST)

# Ctrl-C reaches the benchmark, which ends its engines and prints what was measured so far; OUT of such a run goes on.
bench-savings: setup ## what Economizer saves against the full model alone, on real engines (about an hour; DATA, OUT)
	@exec .venv/bin/python loadtests/bench_savings.py $(if $(DATA),--data $(DATA)) \
		--out $(or $(OUT),.economizer/savings/$$(date +%Y-%m-%dT%H-%M-%S)) $(SAVINGS)

bench-peers: setup ## nginx, vllm-router, LiteLLM and Economizer in front of the same engines (about 20 minutes)
	@$(PYTHON) deploy/environment.py peers
	.venv/bin/python loadtests/bench_peers.py $(if $(DATA),--data $(DATA))

soak: setup ## mixed load with cancels and engine kills (MINUTES=30): nothing lost, nothing grows, the bill closes
	.venv/bin/python loadtests/soak.py $(if $(MINUTES),--minutes $(MINUTES))

lock: ## resolve deploy/locks from pyproject.toml again (UPGRADE=--upgrade takes the newest releases)
	@$(PYTHON) -m venv .venvs/lock
	@.venvs/lock/bin/pip install --quiet uv==$(UV_VERSION)
	@PATH="$(CURDIR)/.venvs/lock/bin:$$PATH" .venvs/lock/bin/python deploy/lock.py $(UPGRADE)

clean: ## remove the environments, the models and all other generated files
	rm -rf .venv .venvs .economizer .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
