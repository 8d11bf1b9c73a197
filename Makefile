# Copyright (c) 2026, lockstep.colo maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Everything here stands in build/; nothing is installed on the machine but what the lab itself needs
# (tests/lab/prerequisites.sh says what, and asks for root).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export PATH := $(CURDIR)/build/venv/bin:$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/build/collections
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export MOLECULE_GLOB := molecule/*/molecule.yml

PYTEST := python -m pytest
LABCTL := python tests/lab/labctl.py

.PHONY: help
help: ## this list
	@sed -nE 's/^([a-z][a-z-]*):.*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

.PHONY: bootstrap
bootstrap: ## the pinned tools in build/venv (quick when they are there)
	@scripts/bootstrap

## The main job

.PHONY: demo
demo: lab ## protect a guest on two lab hosts, kill the host that serves, fail over, and prove that the client noticed nothing
	python tests/lab/demo.py

.PHONY: lab
lab: bootstrap ## bring up the two lab hosts and leave them up
	sh tests/lab/prerequisites.sh
	$(LABCTL) up

.PHONY: lab-down
lab-down: bootstrap ## remove everything the lab made, also after a crash
	$(LABCTL) down

## The tests

.PHONY: test
test: bootstrap ## everything; takes the lab up and away itself (LAB_KEEP=1 leaves it up)
	$(PYTEST)

.PHONY: check
check: bootstrap ## the fast part: linters, types, units
	$(PYTEST) -n 2 --dist worksteal -m fast tests/gates tests/unit tests/lab  # two at once, the long ones first

.PHONY: unit
unit: bootstrap ## unit tests only
	$(PYTEST) tests/unit

.PHONY: integration
integration: bootstrap ## integration tests only, beside each real QEMU; some of them: make integration INTEGRATION='-k half_done'
	$(PYTEST) tests/gates/test_integration.py

.PHONY: molecule
molecule: bootstrap ## molecule scenarios only (uses the lab); one of them: make molecule SCENARIO=site
	$(PYTEST) tests/gates/test_molecule.py $(if $(SCENARIO),-k 'test_scenario and $(SCENARIO)')

.PHONY: campaign
campaign: bootstrap ## what takes many runs to show: kills, power cuts, many guests, pauses (an hour); one of them: CAMPAIGN=kills
	sh tests/lab/prerequisites.sh
	python tests/lab/campaign.py $(CAMPAIGN)

.PHONY: faults
faults: bootstrap ## every fault on each side in each phase (half an hour); CASES=PATTERN, RUNS=200, SEED=7, MINUTES=9 (goes on where it was)
	sh tests/lab/prerequisites.sh
	python tests/lab/campaign.py --seed $(or $(SEED),1) $(if $(RUNS),--rounds $(RUNS)) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(CASES),--cases '$(CASES)') faults

.PHONY: faults-page
faults-page: bootstrap ## add the runs of make faults to docs/docsite/faults-runs.jsonl, and write the table of all into faults.md
	python tests/lab/campaign_faults.py

.PHONY: bench
bench: bootstrap ## measurements against the documented procedure and the floor (40 minutes); some of them: BENCH='--rows 1,4 --quick'
	sh tests/lab/prerequisites.sh
	python bench/bench.py $(BENCH)

.PHONY: lint
lint: bootstrap ## ruff, yamllint, ansible-lint
	ruff check .
	ruff format --check .
	yamllint --strict .
	ansible-lint

.PHONY: types
types: bootstrap ## mypy --strict
	scripts/types

.PHONY: sanity
sanity: bootstrap ## ansible-test sanity
	python scripts/ansible_test.py sanity

.PHONY: docs
docs: bootstrap ## the rendered pages, in build/docs/html
	scripts/docs

.PHONY: build
build: bootstrap ## the collection's artifact, in build/
	ansible-galaxy collection build --force --output-path build

.PHONY: install-check
install-check: bootstrap ## build the artifact, install it in an empty place, and call it by its full name
	$(PYTEST) tests/gates/test_install.py

## Odd jobs

.PHONY: format
format: bootstrap ## let ruff format the Python files and mend what it can
	ruff check --fix-only --quiet .
	ruff format --quiet .

.PHONY: lock
lock: bootstrap ## renew the pins of requirements-dev.txt from requirements-dev.in
	scripts/lock

.PHONY: clean
clean: ## lab-down, and remove build/
	if [ -e build/venv/bin/python ]; then $(LABCTL) down; fi  # also where a crash has left more than build/lab
	rm -rf build
