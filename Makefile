# `make serve` and `make test` need nothing but Python 3.11, 3.12 or 3.13. They take the first that is found;
# PYTHON=... names another.
# ATTENTION=xformers installs the torch that xformers is built for, into an environment beside the usual one.
ATTENTION ?= sdpa
ifeq ($(filter sdpa xformers,$(ATTENTION)),)
$(error ATTENTION: '$(ATTENTION)' was given; allowed are sdpa and xformers)
endif
PINS := constraints-$(ATTENTION).txt
VENV := .venv$(patsubst %,-%,$(filter-out sdpa,$(ATTENTION)))
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml
RULES := cluster/prometheus/midstep.rules.yaml
RULES_OBJECT := cluster/kuberay/overlays/production/rules.yaml
PIP := $(BIN)/python cluster/install/quiet_pip.py $(VENV)/pip.log --constraint $(PINS) --editable
.PHONY: install install-dev serve test check chaos fuzz clients train rules

.DELETE_ON_ERROR:

# `install` has what serving needs; `install-dev` adds what the tests need.
install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(BIN)/python:
	@cluster/install/make-venv.sh $(VENV) "$(PYTHON)"

$(VENV)/installed: pyproject.toml constraints.txt $(PINS) $(BIN)/python
	@$(PIP) .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) '.[dev]'
	@touch $@

# SIGTERM is passed on: requests under way are answered first. make itself then exits with 143.
serve: install
	@$(BIN)/midstep run "$(CONFIG)"

# Integration tests share one Ray and run one after another.
test: install-dev
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 tests/unit
	$(BIN)/python -m pytest tests/gpu tests/integration

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# 250 kills: half an hour on an idle machine.
chaos: install-dev
	MIDSTEP_KILLS=50 $(BIN)/python -m pytest tests/integration/test_kills.py

# 100,000 mutated requests: a quarter of an hour.
fuzz: install-dev
	MIDSTEP_FUZZED_REQUESTS=100000 $(BIN)/python -m pytest tests/integration/test_fuzz.py

# Clients of other projects, each in a separate environment; MIDSTEP_URL names a running server.
clients: install-dev
	MIDSTEP_CLIENTS=all $(BIN)/python -m pytest -rP tests/integration/test_clients.py

train: install-dev
	$(BIN)/python models/shapes/train.py

# The rules for Prometheus' operator, from those for Prometheus.
rules:
	sed -i '/^spec:$$/q' $(RULES_OBJECT)
	sed -n '/^groups:$$/,$$ { s/./  &/; p }' $(RULES) >> $(RULES_OBJECT)
