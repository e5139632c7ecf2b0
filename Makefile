# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format bench clean

demo: $(VENV)/.installed  ## the whole path on procedural pictures, into demo/
	rm -rf demo
	$(BIN)/toolkit demo --out demo

test: $(VENV)/.installed-dev  ## the test suite
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev  ## speed and exactness against peers
	$(BIN)/python -m benchmarks.convert

clean:  ## remove what the targets above made
	rm -rf $(VENV) demo

# ultralytics asks for opencv-python and albumentations for opencv-python-headless; both put a
# cv2 in the same place. The headless one goes last: it needs no display libraries.
define install
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable "$(1)"
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps \
	  "opencv-python-headless==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("opencv-python-headless"))')"
endef

$(VENV)/.installed: pyproject.toml
	$(call install,.)
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(call install,.[dev])
	touch $(VENV)/.installed $@
