# The graph: environment -> programs -> notebooks -> report. `make help` lists commands.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:

# full-stacks first: its notebook is the longest, and nothing should wait for it alone.
CATEGORIES := full-stacks data-versioning experiment-tracking model-training \
              model-registry feature-stores serving monitoring
ALL := $(wildcard $(CATEGORIES:=/*.ipynb))
NOTEBOOKS ?= $(ALL)
CELL_TIMEOUT ?= 120
CORES := $(shell nproc)

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/ready
# An environment that was moved, or copied with its clone, is made anew.
$(shell [ "$$(cat $(VENV)/ready 2>/dev/null)" = "$$(cd -P $(VENV) 2>/dev/null && pwd)" ] || rm -f $(VENV)/ready)

# Jupyter's own files stay in the clone; the kernels' variables are in scripts/kernel.py.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export JUPYTER_CONFIG_DIR := $(CURDIR)/build/jupyter/config
export JUPYTER_DATA_DIR := $(CURDIR)/build/jupyter/data
export JUPYTER_PLATFORM_DIRS := 1

# Side by side on all cores, unless the command line says -j itself.
SUBMAKE = $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(CORES))
# NAME=value on the command line: ours, or a parameter of the notebooks (ROWS=5000).
OURS := NOTEBOOKS=% CELL_TIMEOUT=% T=% NAME=% LAB=% SINCE=%
# make writes a space within a value as "\ "; join such words before choosing.
space := $() $()
SETTINGS := $(filter-out $(OURS),$(subst \$(space),_,$(MAKEOVERRIDES)))

.PHONY: help
help:  ## List the commands
	@echo "make run-all first time: a few minutes more, to make the environment and build the servers"
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "  make CATEGORY     Run the notebooks of one folder (make data-versioning)"
	@echo "  make NAME         Run one notebook (make data-versioning/dvc)"
	@echo "  NOTEBOOKS=\"…\"     with run-all, test, refresh, pictures: only these files"
	@echo "  ROWS=5000         with run-all: any parameter of the notebooks, in capitals"

.PHONY: run-all
run-all: $(READY) build/settings  ## Run every notebook into build/, side by side; only what changed
	+@$(SUBMAKE) -k $(addprefix build/,$(NOTEBOOKS)); status=$$?; \
	$(PYTHON) scripts/notebooks.py report $(NOTEBOOKS) || exit 1; exit $$status

.PHONY: $(CATEGORIES) $(ALL:.ipynb=)
$(CATEGORIES) $(ALL:.ipynb=):
	@$(MAKE) --no-print-directory run-all NOTEBOOKS="$(filter $@.ipynb $@/%,$(ALL))"

build/%.ipynb: %.ipynb data/flights.csv requirements.txt build/settings | $(READY)
	@$(PYTHON) scripts/notebooks.py run --cell-timeout $(CELL_TIMEOUT) $< $(SETTINGS)

# Changes only when the settings do, so that other settings run the notebooks again.
build/settings: FORCE | $(READY)
	@mkdir -p build
	@[ -z '$(SETTINGS)' ] || $(PYTHON) scripts/notebooks.py check-settings $(NOTEBOOKS) $(SETTINGS)
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@
.PHONY: FORCE

# With NOTEBOOKS="…" only what concerns those; T=tests/test_x.py chooses by hand.
T ?= $(if $(filter command%,$(origin NOTEBOOKS)),tests/test_notebooks.py,tests)
.PHONY: test
test: $(READY)  ## Run all tests, every notebook's stored outputs against fresh ones included
	+@$(SUBMAKE) -k tools || echo "a tool was not built: its notebook will fail below"
	@$(PYTHON) -m pytest $(if $(filter -j1,$(MAKEFLAGS)),,-n $(CORES)) --nbval \
	    --nbval-cell-timeout $(CELL_TIMEOUT) $(T) $(NOTEBOOKS)

.PHONY: refresh
refresh: $(READY)  ## Execute the notebooks in place and store clean outputs
	+@$(SUBMAKE) -k $(addprefix refresh/,$(NOTEBOOKS))
refresh/%: FORCE | $(READY)
	@$(PYTHON) scripts/notebooks.py refresh --cell-timeout $(CELL_TIMEOUT) $*

.PHONY: pictures
pictures: $(READY) tools  ## Take the pictures of the tools' own pages (needs chromium)
	@$(PYTHON) scripts/pictures.py $(NOTEBOOKS)

.PHONY: readme
readme: $(READY)  ## Write the tables on the front page and the category pages
	@$(PYTHON) scripts/pages.py

.PHONY: alone
alone: $(READY) tools  ## Run notebooks with only what they pip install (SINCE=HEAD~1: what changed)
	@$(PYTHON) scripts/alone.py $(if $(SINCE),--since $(SINCE)) $(NOTEBOOKS)

.PHONY: site
site: $(READY) build/site-js/mermaid.esm.min.mjs  ## Build the web site into build/site
	@$(VENV)/bin/sphinx-build -q -W --keep-going -j auto -c scripts/site . build/site
	@cp build/site/README.html build/site/index.html
	@echo "open build/site/index.html"
build/site-js/mermaid.esm.min.mjs: scripts/site/package-lock.json | $(READY)
	@mkdir -p build/npm $(@D)/chunks && cp scripts/site/package*.json build/npm
	@npm ci --prefix build/npm --silent --no-audit --no-fund --ignore-scripts
	@rm -f build/npm/node_modules/mermaid/dist/chunks/mermaid.esm.min/*.map
	@cp -r build/npm/node_modules/mermaid/dist/chunks/mermaid.esm.min $(@D)/chunks
	@cp build/npm/node_modules/mermaid/dist/$(@F) $@

.PHONY: new
new: $(READY)  ## Make a notebook with the frame filled in (NAME=serving/some-tool)
	@$(PYTHON) scripts/new.py $(NAME)

.PHONY: lab
lab: $(READY) tools  ## Open JupyterLab
	@$(VENV)/bin/jupyter lab --ServerApp.ip=127.0.0.1 $(LAB)

.PHONY: lint
lint: $(READY)  ## Check the style of notebooks and scripts with ruff
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check scripts tests data

.PHONY: lock
LOCK = $(VENV)/bin/uv pip compile --quiet --upgrade --python-version 3.11 --no-header \
       --python-platform x86_64-manylinux_2_31 --generate-hashes
lock: $(READY)  ## Resolve the newest versions into requirements.txt and the tools' locks
	@$(LOCK) scripts/requirements.in -o requirements.txt
	@$(LOCK) scripts/guild-ai.in -o scripts/guild-ai.txt
	@$(LOCK) scripts/bodywork.in -o scripts/bodywork.txt \
	    --build-constraints <(echo 'setuptools<66') \
	    --overrides <(echo -e 'pyyaml==6.0.2\nclick<8.1')
	@cd scripts/configurable-http-proxy && npm update --package-lock-only --silent

.PHONY: clean
clean:  ## Remove what runs left in build/; the environment stays
	rm -rf build .pytest_cache .ruff_cache

# Programs that pip does not bring, and the notebooks that need them.
NEEDS_data-versioning/dolt := dolt-2.2.0
NEEDS_data-versioning/lakefs := lakefs-1.86.0
NEEDS_data-versioning/pachyderm := pachyderm-2.12.2
NEEDS_experiment-tracking/guild-ai := guild-ai-0.9.0
NEEDS_serving/bodywork := bodywork-3.0.12
NEEDS_full-stacks/openmlops := oathkeeper-0.40.9 configurable-http-proxy-5.2.0
needs = $(sort $(patsubst %,$(VENV)/tools/%.ready,$(foreach n,$(1:.ipynb=),$(NEEDS_$n))))
$(foreach n,$(NOTEBOOKS),$(eval build/$n refresh/$n: | $(call needs,$n)))

.PHONY: tools
tools: $(READY) $(call needs,$(NOTEBOOKS))  ## Build the servers and commands that pip does not bring
	@true
$(VENV)/tools/%.ready: | $(READY)
	@scripts/build_tool.sh $*
$(VENV)/tools/guild-ai-%.ready: scripts/guild-ai.txt
$(VENV)/tools/bodywork-%.ready: scripts/bodywork.txt

$(READY): requirements.txt scripts/kernel.py scripts/environment.sh
	@mkdir -p build
	@scripts/environment.sh
