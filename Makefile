# The two commands: `make demo` and `make test`. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E)
PYTEST := .venv/bin/pytest

.PHONY: help demo test test-fast lint rehearsal gpu-lab reference clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: ## From nothing to a verdict on this machine, and a report
	@setup/packages demo
	@setup/venv
	@$(AS_ROOT) .venv/bin/cluster demo

test: ## Every test: unit, functional, integration, lab, browser, netboot
	@setup/packages test
	@setup/venv
	@$(AS_ROOT) $(PYTEST) -q -n 2 tests/unit tests/functional
	@$(AS_ROOT) $(PYTEST) tests/integration tests/lab tests/netboot

test-fast: ## Unit and functional tests but the slow ones: under a minute, no daemon
	@setup/venv
	@$(PYTEST) -q -n 2 -m "not slow" tests/unit tests/functional

lint: ## ruff, mypy, import-linter, names and rooms, salt-lint, yamllint, shellcheck
	@setup/packages test
	@setup/venv
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PYTEST) -q tests/unit/test_words.py tests/unit/test_rooms.py
	@git ls-files '*.sls' | xargs .venv/bin/salt-lint
	@git ls-files '*.yaml' '*.yml' | xargs .venv/bin/yamllint -s
	@shellcheck setup/packages setup/venv setup/control-node .ci/run netboot/image/files/init netboot/image/files/udhcpc netboot/image/files/stage

rehearsal: ## Control node, two nodes, reprovision and rollback, all in virtual machines of this machine
	@setup/packages rehearsal
	@setup/venv
	@$(AS_ROOT) .venv/bin/python -m rehearsal

gpu-lab: ## Cards of this machine as a cluster: verdicts on known faults (DEVICE=cpu rehearses it, CARDS=4, OUT=folder)
	@setup/packages demo
	@setup/venv
	@$(AS_ROOT) .venv/bin/cluster gpu-lab --device $(or $(DEVICE),cuda) --cards $(or $(CARDS),2) \
		--output $(or $(OUT),gpu-lab) $(if $(ONLY),--only $(ONLY)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(TRACE),--trace)

reference: ## Write the generated pages of doc/reference again
	@setup/venv
	@.venv/bin/python -m cli.reference

clean: ## Take the lab down and remove the virtual environment
	@if [ -x .venv/bin/cluster ]; then $(AS_ROOT) .venv/bin/cluster lab down demo; fi
	@rm -rf .venv
