# The graph: environment -> programs -> notebooks -> report. `make help` lists commands.
SHELL := /bin/bash
# Without the user's BASH_ENV and exported functions
.SHELLFLAGS := -pc
.DEFAULT_GOAL := help
.SUFFIXES:

CATEGORIES := $(shell sed -n '/^CATEGORIES/,/^\]/p' scripts/pages.py | grep -o '"[a-z-]*"' | tr -d '"')
# Programs that pip does not bring, and who needs them: words "category/tool:dolt-2.2.0".
NEEDS := $(shell awk -F'"' '/^\[/ {tool = substr($$0, 2, length($$0) - 2)} \
  /^version/ {version = $$2} /^notebooks/ {for (i = 2; i < NF; i += 2) print $$i ":" tool "-" version}' \
  environment/tools.toml)
needs = $(sort $(foreach n,$(1:.ipynb=),$(patsubst $n:%,%,$(filter $n:%,$(NEEDS)))))
FOUND := $(foreach c,$(CATEGORIES),$(sort $(wildcard $c/*.ipynb)))
# Those that need nothing built run while the others' programs are compiled.
ALL := $(foreach n,$(FOUND),$(if $(call needs,$n),,$n)) $(foreach n,$(FOUND),$(if $(call needs,$n),$n))
CHOSEN := $(filter command%,$(origin NOTEBOOKS))
NOTEBOOKS ?= $(ALL)
override NOTEBOOKS := $(patsubst ./%,%,$(patsubst $(CURDIR)/%,%,$(NOTEBOOKS)))
# Notebooks that need the cluster are left out, and named, while there is none.
ON_CLUSTER := $(filter %-on-kubernetes.ipynb,$(NOTEBOOKS))
# The newest and the oldest packages are not those in the cluster's images.
UP := $(if $(filter newest oldest,$(MAKECMDGOALS)),,$(if $(ON_CLUSTER),$(or $(filter current,$(CLUSTER)),$(shell \
  tr '\0' ' ' 2>/dev/null <"/proc/$$(cat .cluster/pid 2>/dev/null || echo none)/cmdline" | grep -o node.sh))))
LEFT_OUT := $(if $(UP),,$(ON_CLUSTER))
override NOTEBOOKS := $(filter-out $(LEFT_OUT),$(NOTEBOOKS))
export LEFT_OUT CLUSTER
CELL_TIMEOUT ?= 120
CORES := $(shell nproc)
PYTHON := .venv/bin/python

# With -n nothing runs: make itself would run the lines that call other makes.
DRY := $(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS))))
# These goals need nothing made or mended first.
IDLE := $(DRY)$(if $(filter-out help clean new,$(or $(MAKECMDGOALS),help)),,yes)

# A setting of the user's must not change what Python, Git, Bash or pytest do here, or where
# uv and pip install. What set-up needs, proxies, mirrors and certificates, has other names;
# kernels get scripts/kernel.py's.
unexport $(filter-out GIT_SSL_%,$(filter PYTHON% PYTEST% GIT_% JUPYTER% IPYTHON% NOTEBOOK_% \
  BASH% SHELLOPTS GLOBIGNORE CDPATH ENV PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_PYTHON \
  UV_PYTHON UV_SYSTEM_PYTHON UV_TARGET UV_PREFIX UV_PROJECT% UV_WORKING_DIR UV_VENV_% \
  UV_%HASHES,$(.VARIABLES)))
export LC_ALL := C.UTF-8
export PATH := $(CURDIR)/.venv/bin:$(PATH)
ifeq ($(UV_DEFAULT_INDEX)$(UV_INDEX_URL),)
# The mirror of pip's settings that filled the environment, for all that uv brings besides.
export UV_DEFAULT_INDEX = $(shell cat .venv/mirror 2>/dev/null)
environment: export UV_DEFAULT_INDEX =
endif
# Jupyter's own files stay in the clone.
export JUPYTER_CONFIG_DIR := $(CURDIR)/build/jupyter/config
export JUPYTER_DATA_DIR := $(CURDIR)/build/jupyter/data
export JUPYTER_PLATFORM_DIRS := 1
export MPLCONFIGDIR := $(CURDIR)/.venv/home/.matplotlib
ifneq ($(shell [ -w "$$HOME" ] && echo yes),yes)
export HOME := $(CURDIR)/build/home
$(if $(IDLE),,$(shell mkdir -p build/home))
endif

# Side by side on all cores, unless the command line says -j itself.
SUBMAKE = $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(CORES))
# NAME=value on the command line: ours, or a parameter of the notebooks (ROWS=5000), whose
# value reaches scripts/run.py through the environment, as it was typed.
OURS := NOTEBOOKS CELL_TIMEOUT T NAME LAB SINCE CLUSTER CLUSTER_TESTS NEWEST PROGRAMS RESOLUTION KEEP CHECK
SETTINGS := $(strip $(foreach v,$(filter-out $(OURS) MAKE%,$(.VARIABLES)),$(if $(filter command%,$(origin $v)),$v)))
$(foreach v,$(SETTINGS),$(if $(findstring $$,$(value $v)),$(error $v: a value with a dollar sign cannot be passed through make)))
# Those goals that call run-all included; a make that make called is not asked again.
$(if $(SETTINGS),$(if $(filter run-all $(CATEGORIES) $(ALL:.ipynb=),$(MAKECMDGOALS))$(MAKELEVEL:0=),,\
  $(error $(SETTINGS): only run-all takes parameters of the notebooks)))
# One at a time in a clone: two runs would write the same files.
alone = $(if $(DRY),exit 0;) mkdir -p build; exec 8>build/$1.lock; flock -n 8 || { echo "another make $1 is at work in this clone: wait for it, or stop it"; exit 1; }

.PHONY: help
help:  ## List the commands
	@echo "make run-all first time: half an hour on 2 cores, as it compiles the servers"
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 23
	@echo "  make CATEGORY        Run the notebooks of one folder (make data-versioning)"
	@echo "  make NAME            Run one notebook (make data-versioning/dvc)"
	@echo "  NOTEBOOKS=\"…\"     with most commands: only these notebooks"
	@echo "  ROWS=5000         with run-all: any parameter of the notebooks, in capitals"

.PHONY: environment
environment:
	@scripts/environment.sh

.PHONY: run-all
run-all: environment  ## Run every notebook into build/, side by side; only what changed
	+@$(call alone,run-all); $(PYTHON) scripts/run.py settings --cell-timeout "$(CELL_TIMEOUT)" "$(SETTINGS)" $(NOTEBOOKS) || exit 2; \
	$(SUBMAKE) -k $(addprefix build/,$(NOTEBOOKS)); status=$$?; \
	$(PYTHON) scripts/report.py $(NOTEBOOKS) || exit 1; exit $$status

.PHONY: $(CATEGORIES) $(ALL:.ipynb=)
$(CATEGORIES) $(ALL:.ipynb=):
	@$(MAKE) --no-print-directory run-all NOTEBOOKS="$(filter $@.ipynb $@/%,$(ALL))"

# With the programs below, all that a result depends on; scripts/report.py has the same.
build/%.ipynb: %.ipynb $(wildcard data/*.csv) scripts/kernel.py environment/requirements.txt build/%.settings
	@$(PYTHON) scripts/run.py run --cell-timeout $(CELL_TIMEOUT) $<

# Each command that runs a notebook of the cluster first sees that the cluster is ready.
PROGRAMS_OF_CLUSTER := $(if $(filter current,$(CLUSTER)),,$(shell \
  sed -n '/^\[kubernetes\]/,/^version/s/^version = "\(.*\)"/.venv\/tools\/kubernetes-\1.ready/p' environment/tools.toml))
.PHONY: cluster cluster-down cluster-status
cluster: environment $(PROGRAMS_OF_CLUSTER)  ## Start a Kubernetes for the notebooks named …-on-kubernetes (root)
	@$(call alone,cluster); $(PYTHON) cluster/cluster.py up $(or $(ON_CLUSTER),$(filter %-on-kubernetes.ipynb,$(FOUND)))
cluster-down: environment  ## End it; images and logs stay in .cluster/
	@$(PYTHON) cluster/cluster.py down
cluster-status: environment  ## Say what it runs and takes
	@$(PYTHON) cluster/cluster.py status
$(foreach n,$(filter $(ON_CLUSTER),$(NOTEBOOKS)),$(eval build/$n refresh/$n: | cluster))

# With NOTEBOOKS="…" only what concerns those; T=tests/test_x.py only these tests.
TESTED = $(if $(CHOSEN)$(filter file,$(origin T)),$(NOTEBOOKS))
T = $(if $(CHOSEN),tests/test_notebooks.py,tests)
.PHONY: test
test: environment $(if $(filter $(ON_CLUSTER),$(NOTEBOOKS)),cluster)  ## Run all tests, every notebook's stored outputs against fresh ones included
	+@$(call alone,test); $(SUBMAKE) -k tools || echo "a tool was not built: its notebook will fail below"; \
	$(PYTHON) -m pytest $(if $(filter -j1,$(MAKEFLAGS)),,-n $(CORES)) --nbval \
	    --nbval-cell-timeout $(CELL_TIMEOUT) $(or $(T),tests) $(TESTED)

.PHONY: refresh
refresh: environment  ## Execute the notebooks in place and store clean outputs
	+@$(call alone,refresh); $(SUBMAKE) -k $(addprefix refresh/,$(NOTEBOOKS))
refresh/%: FORCE
	@$(PYTHON) scripts/run.py refresh --cell-timeout $(CELL_TIMEOUT) $*
.PHONY: FORCE

.PHONY: pictures
pictures: environment tools  ## Take the pictures of the tools' own pages (CHECK=1: compare with fresh ones)
	@$(PYTHON) scripts/pictures.py $(if $(CHECK),--check) $(NOTEBOOKS)

.PHONY: readme
readme: environment  ## Write what is generated on the front page, MACHINES.md and the category pages
	@$(PYTHON) scripts/pages.py

.PHONY: places
places: environment  ## Ask the package index which notebooks have wheels on other machines
	@$(PYTHON) scripts/places.py

.PHONY: alone
alone: environment tools  ## Run notebooks with only what they pip install (SINCE=HEAD~1: what changed; NEWEST=1: unpinned)
	@$(call alone,alone); $(PYTHON) scripts/alone.py $(if $(SINCE),--since $(SINCE)) $(if $(NEWEST),--newest) $(NOTEBOOKS)

.PHONY: growth
growth: environment tools  ## Run notebooks at 5,000, 20,000 and all flights: seconds, memory, exponent
	@$(PYTHON) scripts/measure.py growth $(NOTEBOOKS)

.PHONY: cold
cold: environment  ## Time a first run of everything, nothing compiled (SINCE=REV: beside that one; NOTEBOOKS="…": those)
	@$(PYTHON) scripts/measure.py cold "$(SINCE)" $(if $(CHOSEN),$(NOTEBOOKS))

.PHONY: bare
bare:  ## Run everything on a bare Debian, as an ordinary user (root; NOTEBOOKS="…": those)
	@scripts/bare.sh $(if $(CHOSEN),$(NOTEBOOKS))

.PHONY: site
site: environment build/site-js/mermaid.esm.min.mjs  ## Build the web site into build/site
	@.venv/bin/sphinx-build -q -W --keep-going -j auto -c site . build/site
	@cp build/site/README.html build/site/index.html
	@echo "open build/site/index.html"
build/site-js/mermaid.esm.min.mjs: site/package-lock.json | environment
	@mkdir -p build/npm $(@D)/chunks && cp site/package*.json build/npm
	@npm ci --prefix build/npm --silent --no-audit --no-fund --ignore-scripts
	@rm -f build/npm/node_modules/mermaid/dist/chunks/mermaid.esm.min/*.map
	@cp -r build/npm/node_modules/mermaid/dist/chunks/mermaid.esm.min $(@D)/chunks
	@cp build/npm/node_modules/mermaid/dist/$(@F) $@

.PHONY: new
new:  ## Make a notebook with the frame filled in (NAME=serving/some-tool)
	@[[ "$$NAME" =~ ^[a-z-]+/[a-z0-9]+(-[a-z0-9]+)*$$ && " $(CATEGORIES) " = *" $${NAME%/*} "* ]] || \
	    { echo "NAME is category/some-tool, the category one of: $(CATEGORIES)"; exit 1; }; \
	[ ! -e "$$NAME.ipynb" ] || { echo "$$NAME.ipynb exists already"; exit 1; }; mkdir -p "$${NAME%/*}"; \
	sed "s/some-tool/$${NAME#*/}/g" scripts/template/some-tool.ipynb >"$$NAME.ipynb" && \
	echo "$$NAME.ipynb is there: edit it, then make refresh NOTEBOOKS=$$NAME.ipynb"

.PHONY: lab
lab: environment tools  ## Open JupyterLab
	@rm -rf .venv/home/.kube .venv/home/.aws; $(if $(UP),cp -r .cluster/$(or $(filter current,$(CLUSTER)),home)/. .venv/home/;) \
	.venv/bin/jupyter lab --ServerApp.ip=127.0.0.1 \
	    $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

.PHONY: kernel
kernel: environment  ## Offer the notebooks' kernel to VS Code (a file in your Jupyter folder)
	@folder="$${XDG_DATA_HOME:-$$HOME/.local/share}/jupyter/kernels/open-source-mlops"; \
	mkdir -p "$$folder"; sed 's/"Python 3 (ipykernel)"/"Open source MLOps"/' \
	    .venv/share/jupyter/kernels/python3/kernel.json >"$$folder/kernel.json"; \
	echo "the kernel 'Open source MLOps' is in $$folder"

.PHONY: lint
lint: environment  ## Check the style of notebooks and scripts with ruff
	@.venv/bin/ruff check . && .venv/bin/ruff format --check cluster scripts tests data

.PHONY: newest oldest
# All in one fresh environment; what fails is run alone until the guilty release is named.
# PROGRAMS=1 builds newer programs, too.
TRY = $(PYTHON) scripts/newest.py --cell-timeout $(CELL_TIMEOUT) \
      --jobs $(if $(filter -j1,$(MAKEFLAGS)),1,$(CORES)) $(NOTEBOOKS)
newest: environment tools  ## Run notebooks on the newest releases; name what breaks one
	@$(call alone,newest); $(TRY) $(if $(PROGRAMS),--programs)
oldest: environment tools  ## Run notebooks on the lower bounds of requirements.in
	@$(call alone,oldest); $(TRY) --oldest

.PHONY: lock resolve
LOCK = uv pip compile --quiet $(if $(KEEP),,--upgrade) --python-version 3.11 --no-header \
       --python-platform x86_64-manylinux_2_31 --generate-hashes
lock: environment  ## Resolve the newest versions into environment/*.txt (KEEP=1: what is new, no more)
	@$(MAKE) --no-print-directory resolve
IN := $(wildcard environment/*.in)
resolve: $(IN:environment/%.in=resolve/%) $(if $(KEEP),,$(if $(wildcard environment/configurable*),resolve-proxy))
resolve/%: FORCE
	@cd environment && $(LOCK) $(if $(RESOLUTION),--resolution $(RESOLUTION)) $*.in -o $*.txt
resolve/bodywork: LOCK += --build-constraints <(echo 'setuptools<66') \
    --overrides <(echo -e 'pyyaml==6.0.2\nclick<8.1')
resolve-proxy: FORCE
	@cd environment/configurable-http-proxy && npm update --package-lock-only --silent

.PHONY: clean
clean:  ## Remove what runs left in build/; the environment stays
	rm -rf build .ruff_cache

ready = $(patsubst %,.venv/tools/%.ready,$1)
# A link into a clone that was removed: the programs are linked or built again.
$(if $(IDLE),,$(shell [ -z "$$(find -L .venv/bin -maxdepth 1 -type l 2>/dev/null)" ] || rm -f .venv/tools/*.ready))
$(foreach n,$(NOTEBOOKS),$(eval build/$n refresh/$n: $(call ready,$(call needs,$n))))

.PHONY: tools
tools: $(call ready,$(call needs,$(NOTEBOOKS)))  ## Build the servers and commands that pip does not bring
	@true
.venv/tools/%.ready: | environment
	@$(PYTHON) scripts/build_tool.py $*
# Those with packages of their own follow their lock.
$(foreach l,$(patsubst environment/%.txt,%,$(wildcard environment/*.txt)),$(foreach t,\
  $(filter $l-%,$(sort $(foreach n,$(NEEDS),$(lastword $(subst :, ,$n))))),\
  $(eval .venv/tools/$t.ready: environment/$l.txt)))
