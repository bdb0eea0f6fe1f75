# Every target makes its own environment first; PYTHON chooses the interpreter that it is made with.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt
comma := ,
SOURCES = pyproject.toml setup.py constraints.txt $(wildcard csrc/*)

CLIP = examples/demo_180p.mp4
UPSCALED = demo/demo_720p.mp4
PICTURE = demo/before_after.png

.PHONY: demo test check torture bench clean

demo: $(VENV)/.installed
	@mkdir -p demo
	$(VENV)/bin/psssr upscale $(CLIP) -o $(UPSCALED) --overwrite
	$(VENV)/bin/psssr compare $(CLIP) $(UPSCALED) -o $(PICTURE) --overwrite
	@printf 'video:      %s\ncomparison: %s\n' $(UPSCALED) $(PICTURE)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Each driver says on its last line what it found; all run, also after one that failed.
TORTURES = "kill.py --jobs 50 --seed 1" "file_operations.py --every 2" \
  "fuzz.py --files 3000 --seed 1" "memory.py --frames 3000 --small --max-slope 4096" \
  "memory.py --jobs 500"

torture: $(VENV)/.installed-dev
	@failed=0; for run in $(TORTURES); do echo "tests/torture/$$run"; \
	  $(VENV)/bin/python tests/torture/$$run || failed=1; done; exit $$failed

bench: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks.json

clean:
	rm -rf $(VENV) build dist demo *.egg-info psssr_fast/_C.*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

# $(call install,EXTRAS). Torch comes first: the extension is compiled against what is installed.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'psssr_fast needs Python 3.11 or later: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV), once; this takes some minutes'
	$(PIP) torch numpy setuptools wheel ninja
	$(PIP) --no-build-isolation -e '.$(1)'
endef

$(VENV)/.installed: $(SOURCES)
	$(call install,)
	@touch $@

$(VENV)/.installed-dev: $(SOURCES)
	$(call install,[test$(comma)ref$(comma)train$(comma)metrics$(comma)dev])
	@touch $@ $(VENV)/.installed
