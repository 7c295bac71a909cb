# Every verb does the set-up it needs. PYTHON is the interpreter that the environment is made with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTO_ENV := .protoenv
# The generator of the stubs. Its versions are the floors of grpcio and protobuf in pyproject.toml.
GRPC_TOOLS := grpcio-tools==1.75.1 grpcio==1.75.1 protobuf==6.31.1 setuptools==80.9.0
# The quantiser is kept apart: where it is installed, diffusers imports it always, which takes a second and prints much.
TORCHAO := .torchao
BUF := @bufbuild/buf@1.75.0
# What the protos must stay compatible with: the last tag, and before there is one main; nothing where neither is here.
PROTOS_BASE = $(shell for ref in $$(git describe --tags --abbrev=0 2>/dev/null) origin/main main; do \
	git cat-file -e "$$ref:protos" 2>/dev/null && echo "$$ref" && break; done)
PROTOS := $(wildcard protos/darkroom/v1/*.proto)
OUT ?= out

# help: list the verbs
.PHONY: help
help:
	@grep -E '^# [a-z-]+: ' Makefile | sed 's/^# //'

# demo: make "a red circle on a blue background" with the embedded model, and a contact sheet of its previews
.PHONY: demo
demo: $(VENV)/ready
	$(BIN)/python -m darkroom_server.cli.demo --out $(OUT)

# serve: serve the embedded demo model on 127.0.0.1:50051
.PHONY: serve
serve: $(VENV)/ready
	$(BIN)/darkroom serve

# ui: serve the embedded demo model, and a page for browsers on http://127.0.0.1:7860
.PHONY: ui
ui: $(VENV)/ready
	@$(BIN)/darkroom serve & trap "kill $$! 2>/dev/null" EXIT; $(BIN)/darkroom ui

# test: the tests, on as many cores as there are, up to four
.PHONY: test
test: $(VENV)/ready $(PROTO_ENV)/ready $(TORCHAO)/ready
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST)

# test-all: the same with those that take long
.PHONY: test-all
test-all:
	$(MAKE) test PYTEST='-m "" $(PYTEST)'

# soak: everything at once for MINUTES; or one thing alone: so many KILLS, HOSTILE requests, watched EVENTS, sudden ENDS
ifeq ($(MINUTES)$(KILLS)$(HOSTILE)$(EVENTS)$(ENDS),)
MINUTES = 10
endif
SOAKS = $(foreach each,MINUTES KILLS HOSTILE EVENTS ENDS,$(if $($(each)),$(each)))
.PHONY: soak
soak: $(VENV)/ready
	$(foreach each,$(SOAKS),DARKROOM_$(each)=$($(each))) $(BIN)/python -m pytest -m soak -s --timeout 0 \
		-k "nothing $(foreach each,$(SOAKS),or $(each))" tests/darkroom_server

# soak-cluster: kill replicas on Ray Serve KILLS times while clients make pictures; cancel ten times as many jobs, and
# have replicas replaced during 25 times as many
.PHONY: soak-cluster
soak-cluster: $(VENV)/ready
	DARKROOM_KILLS=$(or $(KILLS),20) DARKROOM_CANCELS=$$((10 * $(or $(KILLS),20))) \
		DARKROOM_STREAMS=$$((25 * $(or $(KILLS),20))) \
		$(BIN)/python -m pytest tests/darkroom_server/cluster/test_ray.py -m slow --timeout 0

# screenshot: write .readme/ui.png again, a picture of `darkroom ui` in a browser
.PHONY: screenshot
screenshot: $(VENV)/ready
	DARKROOM_SCREENSHOT=.readme/ui.png $(BIN)/python -m pytest tests/darkroom_client/test_ui_browser.py -m "" -k readme

# lint: ruff, mypy and buf, which also refuses protos that break clients of the last tag
.PHONY: lint
lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy protos/darkroom plugins/darkroom_plugins server client
	npm exec --yes --package=$(BUF) -- buf lint protos
	npm exec --yes --package=$(BUF) -- buf format --diff --exit-code protos
	@base="$(PROTOS_BASE)"; \
	if [ -z "$$base" ]; then echo "buf breaking: skipped, as neither a tag nor main is here to compare with"; exit; fi; \
	echo "buf breaking protos, compared with $$base"; \
	git archive "$$base:protos" | npm exec --yes --package=$(BUF) -- buf breaking protos --against '-#format=tar'

# protos: write the stubs again
.PHONY: protos
protos: $(PROTO_ENV)/ready
	$(PROTO_ENV)/bin/python -m grpc_tools.protoc -I protos --python_out=protos --pyi_out=protos --grpc_python_out=protos $(PROTOS)

# bench: compare with diffusers' pipeline, driven in three ways, on the CPU with the demo model
.PHONY: bench
bench: $(VENV)/ready
	$(BIN)/python -m tests.benchmarks $(BENCH)

# bench-gpu: tests and benchmark on a GPU, with real architectures of random weights: the stages that are not done yet
.PHONY: bench-gpu
bench-gpu: $(VENV)/ready $(TORCHAO)/ready
	$(BIN)/python -m tests.gpu --out $(OUT)/gpu $(BENCH)

# dist: build the sdist and the wheel in dist/, and check what an index will say of them
.PHONY: dist
dist: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m twine check --strict dist/*

# clean: remove the environments and everything made
.PHONY: clean
clean:
	rm -rf $(VENV) $(PROTO_ENV) $(TORCHAO) $(OUT) dist .cache .pytest_cache .mypy_cache .ruff_cache

$(VENV)/ready: constraints.txt pyproject.toml plugins/examples/vignette/pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[server,web,ui,prompts,ray,postgres,otel,dev]" -e plugins/examples/vignette
	touch $@

$(PROTO_ENV)/ready: Makefile
	$(PYTHON) -m venv --clear $(PROTO_ENV)
	$(PROTO_ENV)/bin/python -m pip install --quiet $(GRPC_TOOLS)
	touch $@

$(TORCHAO)/ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(TORCHAO) -c constraints.txt torchao
	touch $@
